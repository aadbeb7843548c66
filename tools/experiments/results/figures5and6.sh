onnx-net2net deepen teacher.onnx -o student.onnx --after '*.branch7x7_3.conv' --pairs 2 --calibrate calibration.npz --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
onnx-net2net deepen teacher.onnx -o student.onnx --after '*.branch7x7_3.conv' --pairs 4 --calibrate calibration.npz --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
onnx-net2net widen teacher.onnx -o student.onnx --set inception3a.branch1x1.conv=17 --set inception3a.branch3x3_1.conv=17 --set inception3a.branch3x3_2.conv=23 --set inception3a.branch7x7_1.conv=11 --set inception3a.branch7x7_2.conv=17 --set inception3a.branch7x7_3.conv=17 --set inception3a.branch_pool.conv=11 --set inception4a.branch1x1.conv=23 --set inception4a.branch3x3_1.conv=23 --set inception4a.branch3x3_2.conv=34 --set inception4a.branch7x7_1.conv=17 --set inception4a.branch7x7_2.conv=23 --set inception4a.branch7x7_3.conv=23 --set inception4a.branch_pool.conv=17 --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
