"""Plain onnxruntime, driven as llmc drives it; runs in llmc's own environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import turns

from targets.onnx.session import OnnxSession


class Engine:
    """A folder of an ONNX target. The cache grows with the text."""

    def __init__(self, artifact: Path, threads: int, length: int) -> None:
        self._session, self._token = OnnxSession(artifact, threads=threads), 0

    def start(self, prompt: list[int]) -> None:
        self._token = self._session.prefill(np.array([prompt], np.int64))

    def step(self) -> None:
        self._token = self._session.decode(self._token)


if __name__ == "__main__":
    turns.main(Engine)
