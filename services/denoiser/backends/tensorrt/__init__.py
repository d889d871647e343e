"""TensorRT and TensorRT-RTX: export, build, keep and run engines. The module itself is a value, not an import."""
