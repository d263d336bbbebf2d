"""The auto-round side of quantization.py; runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import row

BATCH_SIZE = 8  # its default


def load() -> Callable[[row.Task], None]:
    import numpy
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    def quantize(task: row.Task) -> None:
        tokens = torch.from_numpy(numpy.load(task.tokens))
        samples, length = tokens.shape
        batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens.split(BATCH_SIZE)]
        tuner = AutoRound(
            str(task.model),
            AutoTokenizer.from_pretrained(task.model),
            dataset=batches,
            nsamples=samples,
            seqlen=length,
            batch_size=BATCH_SIZE,
            device_map="cpu",
            **task.options,
        )
        # It makes a folder of a name of its own below the one it is given.
        parent = task.out.with_name(f"{task.out.name}-parent")
        _, folder = tuner.quantize_and_save(str(parent), format="llm_compressor")
        Path(folder).rename(task.out)
        parent.rmdir()

    return quantize


if __name__ == "__main__":
    row.main(("auto-round", "compressed-tensors", "transformers", "torch"), load)
