"""What runs a step's network: torch, its compiler, TensorRT, onnxruntime, behind one port (`base.Backend`)."""
