"""Engines of TensorRT-RTX, built ahead of time and without a GPU from the ONNX of standard operators."""
