"""The core of llmc: checkpoints, the quantized representation, the pipeline, measuring and the command line."""

__version__ = "0.2.0"
