onnx-net2net widen teacher.onnx -o student.onnx --factor 1.5 --only ffn --only heads --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
onnx-net2net deepen teacher.onnx -o student.onnx --depth 2x --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
