"""Backends that run the network for one step: torch, torch.compile, TensorRT or onnxruntime."""
