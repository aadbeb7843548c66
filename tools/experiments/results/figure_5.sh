onnx-net2net deepen teacher.onnx -o student1.onnx --after '*.branch7x7_3.conv' --pairs 2 --calibrate calibration.npz --seed 4
onnx-net2net checkpoint teacher.onnx student1.onnx --state-dict teacher.safetensors -o student.safetensors
