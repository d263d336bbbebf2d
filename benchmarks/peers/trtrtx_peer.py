"""Says where TensorRT-RTX is installed, so that llmc's own environment can import it from there."""

from __future__ import annotations

from pathlib import Path

import tensorrt_rtx_bindings

print(Path(tensorrt_rtx_bindings.__file__).parents[1])
