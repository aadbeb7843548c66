onnx-net2net widen teacher.onnx -o student.onnx --set=fc1=64 --set=fc2=64 --spread 0 --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
onnx-net2net widen teacher.onnx -o student.onnx --set=fc1=64 --set=fc2=64 --spread 0 --noise 0.05 --seed 0
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
onnx-net2net widen teacher.onnx -o student.onnx --set=fc1=64 --set=fc2=64 --seed 0
onnx-net2net verify teacher.onnx student.onnx
onnx-net2net checkpoint teacher.onnx student.onnx --state-dict teacher.safetensors -o student.safetensors
