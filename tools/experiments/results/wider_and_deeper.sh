onnx-net2net widen teacher.onnx -o student1.onnx --factor 2 --for torch --seed 4
onnx-net2net deepen student1.onnx -o student2.onnx --depth 2x --seed 4
onnx-net2net checkpoint teacher.onnx student2.onnx --state-dict teacher.safetensors -o student.safetensors
