"""One flat graph with the size of every tensor. It is read, walked and edited with onnx-graphsurgeon."""
