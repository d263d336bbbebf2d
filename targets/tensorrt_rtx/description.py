"""The file beside an engine: what it was built for, and where the weights of the ONNX lie in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from compressor.files import write_json
from targets.tensorrt_rtx.shapes import Range

ENGINE, DESCRIPTION = "model.engine", "engine.json"
PACKAGE = "tensorrt_rtx_bindings"
CODES = ".codes"  # how the names of integers end


@dataclass(frozen=True)
class Place:
    """Where a tensor of the ONNX lies in the engine.

    Attributes:
        offset: of its first byte.
        length: of all its bytes.
        transposed: whether rows and columns are exchanged.
        stride: bytes from row to row where the builder put several matrices side by side; 0 is all in one run.
        rows: how many there are then.
    """

    offset: int
    length: int
    transposed: bool
    stride: int = 0
    rows: int = 1

    @property
    def span(self) -> int:
        """Bytes from the first to behind the last."""
        return self.stride * (self.rows - 1) + self.length // self.rows


@dataclass(frozen=True)
class Description:
    """An engine.

    Attributes:
        builder: version of TensorRT-RTX.
        sm: compute capabilities of the GPUs, as 89 for 8.9.
        inputs: smallest, usual and largest shape of each.
        weights: place of each tensor of the ONNX that lies in the engine as it is.
    """

    builder: str
    sm: tuple[int, ...]
    inputs: Mapping[str, Range]
    bytes: int
    weights: Mapping[str, Place]

    def write(self, folder: Path) -> None:
        write_json(folder / DESCRIPTION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Description:
        """The description in an artifact's folder.

        Raises:
            OSError, ValueError, KeyError, TypeError: it is not there, or damaged.
        """
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        places = {name: Place(**place) for name, place in found["weights"].items()}
        return cls(found["builder"], tuple(found["sm"]), found["inputs"], found["bytes"], places)

    @property
    def sentence(self) -> str:
        """What the ledger says."""
        integers = [place.length for name, place in self.weights.items() if name.endswith(CODES)]
        others = [place.length for name, place in self.weights.items() if not name.endswith(CODES)]
        rest = self.bytes - sum(integers) - sum(others)
        return (
            f"engine of TensorRT-RTX {self.builder} for sm {', '.join(map(str, self.sm))}, {_mib(self.bytes)}: the "
            f"integers of {len(integers)} linears lie in it bit for bit in {_mib(sum(integers))}, {len(others)} other "
            f"tensors in {_mib(sum(others))}; code and the rest take {_mib(rest)}"
        )


def broken_engine_rules(folder: Path) -> Iterator[str]:
    """The engine has the size that was written down, and TensorRT-RTX, where it is installed, knows its header."""
    try:
        described, size = Description.read(folder), (folder / ENGINE).stat().st_size
    except OSError as error:
        yield f"{error.filename} cannot be read ({error.strerror})."
        return
    except (ValueError, KeyError, TypeError) as error:
        yield f"{DESCRIPTION} does not describe an engine ({error})."
        return
    if size != described.bytes:
        yield f"{ENGINE} has {size} bytes, and {described.bytes} were written."
    if find_spec(PACKAGE) is not None:
        from targets.tensorrt_rtx.builder import VERSION, is_malformed

        if is_malformed(folder / ENGINE):
            yield f"TensorRT-RTX {VERSION} does not know {ENGINE} as an engine."


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
