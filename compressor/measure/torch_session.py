"""A checkpoint in transformers on the CPU, as a session whose latency can be set beside a runtime's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import full_model
from compressor.errors import RunError
from compressor.measure.batches import greedy_rows, padded_in_front
from compressor.target import Ended

MEMORY_SHARE = 0.6  # of the memory that is free; a whole model must fit in it


class TorchSession:
    """A whole model in transformers. The one place that needs a whole model in memory.

    Implements `compressor.target.BatchSession`.
    """

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

    def logits_of(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """One after the other: they are logits of all positions, which is what takes the memory."""
        for number, text in enumerate(texts):
            for start, rows in self.logits(text):
                yield number, start, rows

    @torch.no_grad()
    def generate(self, prompts: Sequence[np.ndarray], limit: int, ended: Ended) -> list[list[int]]:
        rows, seen = padded_in_front(prompts)
        mask, self._cache = torch.from_numpy(seen), None

        def following(tokens: torch.Tensor) -> np.ndarray:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            return self._logits(tokens, attention_mask=mask, position_ids=positions).argmax(-1).numpy()

        def appended(last: np.ndarray) -> np.ndarray:
            nonlocal mask
            mask = torch.cat([mask, torch.ones(len(last), 1, dtype=mask.dtype)], 1)
            return following(torch.from_numpy(last)[:, None])

        return greedy_rows(following(torch.from_numpy(rows)), appended, limit, ended)

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
        self._cache, self._batch = None, tokens.shape[0]
        return self._forward(torch.from_numpy(tokens))

    def decode(self, token: int) -> int:
        return self._forward(torch.full((self._batch, 1), token))

    def close(self) -> None:
        self._model = self._cache = None

    @torch.no_grad()
    def _forward(self, tokens: torch.Tensor) -> int:
        return int(self._logits(tokens)[0].argmax())

    def _logits(self, tokens: torch.Tensor, **padding: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab_size] behind tokens [batch, current], which go into the cache."""
        output = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **padding)
        self._cache = output.past_key_values
        return output.logits[:, -1]


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
