"""A checkpoint in transformers on the CPU, as a session whose latency can be set beside a runtime's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import full_model
from compressor.errors import RunError

MEMORY_SHARE = 0.6  # of the memory that is free; a whole model must fit in it


class TorchSession:
    """The whole model in its own float dtype, quantized weights dequantized. The one place that needs a whole model.

    Raises:
        RunError: it does not fit in the memory that is free.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        import transformers

        needed = checkpoint.architecture.parameters * checkpoint.dtype.itemsize
        available = psutil.virtual_memory().available
        if needed > MEMORY_SHARE * available:
            raise RunError(
                f"not timed: the whole model takes {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"
            )
        self.runtime = f"transformers {transformers.__version__} {str(checkpoint.dtype).removeprefix('torch.')} CPU"
        self._model = full_model(checkpoint)
        self._cache: Any = None
        self._batch = 1

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        with torch.no_grad():
            yield 0, self._model(torch.from_numpy(tokens).unsqueeze(0)).logits[0].float().numpy()

    def prefill(self, tokens: np.ndarray) -> int:
        self._cache, self._batch = None, tokens.shape[0]
        return self._forward(torch.from_numpy(tokens))

    def decode(self, token: int) -> int:
        return self._forward(torch.full((self._batch, 1), token))

    def close(self) -> None:
        self._model = self._cache = None

    @torch.no_grad()
    def _forward(self, tokens: torch.Tensor) -> int:
        output = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())
