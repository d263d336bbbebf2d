"""The model as ONNX of standard operators: quantized weights through DequantizeLinear, attention spelled out."""
