"""The ONNX Runtime targets."""
