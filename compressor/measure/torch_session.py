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
    """A whole model in transformers. The one place that needs a whole model in memory."""

    longest = None

    def __init__(self, model: Any) -> None:
        import transformers

        self.runtime = f"transformers {transformers.__version__} {str(model.dtype).removeprefix('torch.')} CPU"
        self._model = model.eval()
        self._cache: Any = None
        self._batch = 1

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TorchSession:
        """A checkpoint in its own float dtype, quantized weights dequantized.

        Raises:
            RunError: it does not fit in the memory that is free.
        """
        check_memory(checkpoint)
        return cls(full_model(checkpoint))

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        with torch.no_grad():
            yield 0, self._model(torch.from_numpy(tokens).unsqueeze(0)).logits[0].float().numpy()

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
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


def check_memory(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> None:
    """See that a whole model, dequantized to this dtype or its own, can be held.

    Raises:
        RunError: it does not fit in the memory that is free.
    """
    needed = checkpoint.architecture.parameters * (dtype or checkpoint.dtype).itemsize
    available = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * available:
        free = f"{available / 2**30:.1f} GiB are free"
        raise RunError(f"the whole model takes {needed / 2**30:.1f} GiB in transformers, {free}")
