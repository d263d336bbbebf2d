"""Models that other tools have quantized already: GPTQ and AWQ folders, their integers and scales kept as they are."""

from compressor.prequantized.folder import PackedFolder, is_prequantized
from compressor.prequantized.importer import import_prequantized

__all__ = ["PackedFolder", "import_prequantized", "is_prequantized"]
