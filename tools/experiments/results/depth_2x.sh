onnx-net2net deepen teacher.onnx -o student1.onnx --depth 2x --seed 4
onnx-net2net checkpoint teacher.onnx student1.onnx --state-dict teacher.safetensors -o student.safetensors
