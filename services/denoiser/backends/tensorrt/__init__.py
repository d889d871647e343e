"""TensorRT and TensorRT-RTX: engines built and run. The module itself is a value, not an import."""
