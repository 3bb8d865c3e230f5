"""Real networks on real data, through `quantize_onnx` as a user would call it."""
