onnx-net2net widen teacher.onnx -o student1.onnx --factor 2 --for torch --seed 4
onnx-net2net checkpoint teacher.onnx student1.onnx --state-dict teacher.safetensors -o student.safetensors
