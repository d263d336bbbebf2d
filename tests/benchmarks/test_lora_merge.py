from __future__ import annotations

from pathlib import Path

import lora_merge
import pytest
import torch

from compressor.checkpoint import Checkpoint

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_files_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(lora_merge, "SHAPE", {**lora_merge.SHAPE, **TINY})
    model, adapter, out = (tmp_path / name for name in ("model", "adapter", "out"))
    lora_merge.make_model(model, layers=2)
    lora_merge.make_adapter(adapter, model, 4, kind)
    lora_merge.merge(model, adapter, out)
    before, after = Checkpoint.open(model).block("layers.1").weights, Checkpoint.open(out).block("layers.1").weights
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}  # type: ignore[arg-type]
    assert len(changed) == 7, "all linears and no norm"
