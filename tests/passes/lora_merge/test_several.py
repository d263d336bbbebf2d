"""Several adapters in one merge: their weights, their combination, and what cannot be combined."""

import pytest
import torch
from merging import merge, merged_by_peft, weights_of
from peft import LoHaConfig, LoKrConfig, LoraConfig

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS),
    "other ranks": LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS, rank_pattern={"q_proj": 2}),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=LINEARS),
    "modules to save": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]),
    "loha": LoHaConfig(r=4, alpha=8, target_modules=LINEARS),
    "lokr": LoKrConfig(r=2, alpha=4, target_modules=LINEARS),
}


@pytest.mark.parametrize("combination", ["cat", "linear"])
def test_several_adapters_with_weights(tiny_model, adapter_of, tmp_path, combination):
    root = tiny_model("llama", tied=False)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj", "embed_tokens"])
    other = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "embed_tokens"])
    adapters = [adapter_of(root, config, "a"), adapter_of(root, other, "b", seed=1)]
    options = {"adapter": [str(one) for one in adapters], "weights": [0.75, -0.5], "combination": combination}
    result, _ = merge(root, tmp_path / "out", **options)
    expected = merged_by_peft(root, adapters, torch.float32, [0.75, -0.5], combination)
    ours = weights_of(result)
    differing = [name for name in ours if not torch.equal(ours[name], expected[name])]
    # What one adapter alone changes is not cut into roots here, which is rounding in float32.
    assert all("down_proj" in name or "up_proj" in name for name in differing)
    for name in differing:
        torch.testing.assert_close(ours[name], expected[name])


def test_the_sum_of_unlike_adapters(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama", tied=False)
    adapters = [adapter_of(root, KINDS[kind], name=kind) for kind in ("lora", "loha", "lokr")]
    result, _ = merge(root, tmp_path / "out", adapter=[str(one) for one in adapters], weights=[1, 0.5, -2])
    base, ours = weights_of(Checkpoint.open(root)), weights_of(result)
    alone = [weights_of(merge(root, tmp_path / f"{one.name}-alone", adapter=[str(one)])[0]) for one in adapters]
    name = "model.layers.1.mlp.down_proj.weight"
    changes = [weight * (merged[name] - base[name]) for merged, weight in zip(alone, (1, 0.5, -2), strict=True)]
    torch.testing.assert_close(ours[name], base[name] + sum(changes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "options", "says"),
    [
        (("dora", "dora"), {}, "the DoRA magnitudes of"),
        (("modules to save", "modules to save"), {}, "the newly trained values of"),
        (("dora",), {"weights": [0.5]}, "cannot be weighted"),
        (("modules to save",), {"weights": [2]}, "cannot be weighted"),
        (("lora", "other ranks"), {"combination": "linear"}, "differ in rank"),
        (("lora", "loha"), {"combination": "linear"}, "differ in rank or kind"),
        (("lora", "lora"), {"weights": [1]}, "2 adapters and 1 weights"),
    ],
)
def test_what_cannot_be_combined(tiny_model, adapter_of, tmp_path, kinds, options, says):
    root = tiny_model("llama", tied=False)
    adapters = [str(adapter_of(root, KINDS[kind], name=f"{n}")) for n, kind in enumerate(kinds)]
    with pytest.raises(InputError, match=says):
        merge(root, tmp_path / "out", adapter=adapters, **options)
