"""The llm-compressor side of quantization.py: runs a recipe with `oneshot`, in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Callable

import row


def load() -> Callable[[row.Task], None]:
    import numpy
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot

    def quantize(task: row.Task) -> None:
        # AWQ pins memory unasked, which torch refuses on a machine without an accelerator.
        if not torch.accelerator.is_available():
            torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]
        tokens = numpy.load(task.tokens)
        samples, length = tokens.shape
        columns = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}
        calibration = {
            "dataset": Dataset.from_dict(columns),
            "num_calibration_samples": samples,
            "max_seq_length": length,
            "shuffle_calibration_samples": False,
        }
        oneshot(
            model=str(task.model),
            recipe=json.dumps({"row_stage": {"row_modifiers": task.options["recipe"]}}),
            output_dir=str(task.out),
            **(calibration if task.options["calibrates"] else {}),
        )

    return quantize


if __name__ == "__main__":
    row.main(("llmcompressor", "compressed-tensors", "transformers", "torch"), load)
