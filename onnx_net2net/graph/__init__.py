"""One flat graph with the size of every tensor: read, walked and edited with onnx-graphsurgeon."""
