"""What runs a step's network: torch, its compiler, TensorRT or onnxruntime, behind one port."""
