"""TensorRT and TensorRT-RTX engines. The Python module is passed as a value instead of being imported."""
