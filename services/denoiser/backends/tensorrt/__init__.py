"""TensorRT: every module here takes `tensorrt`, `tensorrt_rtx` or `tensorrt_lean` as a value."""
