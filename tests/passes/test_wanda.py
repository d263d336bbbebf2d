import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from compressor.pass_ import PassContext
from compressor.registry import make_pass
from passes.sparsity import parse_pattern
from passes.wanda import prune

TOKENS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))


def papers_mask(weight, inputs, sparsity=0.0, pattern=(0, 0)):
    """Which entries go, as in the listing of the paper (prune_n of every prune_m)."""
    metric = weight.abs() * inputs.norm(p=2, dim=0)
    gone = torch.zeros_like(weight, dtype=torch.bool)
    prune_n, prune_m = pattern
    if prune_n:
        for start in range(0, weight.shape[1], prune_m):
            least = torch.topk(metric[:, start : start + prune_m], prune_n, dim=1, largest=False)[1]
            gone.scatter_(1, start + least, True)
        return gone
    order = torch.sort(metric, dim=1, stable=True)[1]
    return gone.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)


@pytest.mark.parametrize(("sparsity", "pattern", "papers"), [(0.4, None, (0, 0)), (0.5, "1:4", (3, 4))])
def test_entries_are_those_of_the_paper(sparsity, pattern, papers):
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 64, generator=generator), torch.randn(100, 64, generator=generator)
    inputs *= torch.linspace(0.1, 3, 64)
    found = prune(weight, inputs.square().mean(0), sparsity, parse_pattern(pattern or "none"))
    expected = torch.where(papers_mask(weight, inputs, sparsity, papers), 0.0, weight)
    assert torch.equal(found, expected)


def wanda(root, out, notes=None, **options):
    one, checkpoint = make_pass("wanda", {"precision": "float32", **options}), Checkpoint.open(root)
    return one.apply(checkpoint, PassContext(out, {}, TOKENS, 0, lambda *_: None, [] if notes is None else notes))


def test_inputs_are_those_of_the_model_pruned_so_far(tiny_model, tmp_path):
    """Each linear is judged on what transformers computes with the pruned ones in front of it."""
    root = tiny_model("llama")
    step = wanda(root, tmp_path / "out")
    pruned = AutoModelForCausalLM.from_pretrained(step.root)
    seen = {}
    for name, module in pruned.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0].flatten(0, 1)}))
    pruned(TOKENS)
    for name, module in AutoModelForCausalLM.from_pretrained(root).named_modules():
        if name in seen:
            gone = papers_mask(module.weight, seen[name], 0.5)
            agree = (gone == (pruned.get_submodule(name).weight == 0)).float().mean()
            assert agree > 0.995, name  # sums in another order tip entries that are as important as each other


def test_inputs_that_are_never_active_are_said(tiny_model, tmp_path):
    root, notes = tiny_model("llama"), []
    model = AutoModelForCausalLM.from_pretrained(root)
    model.model.layers[0].mlp.up_proj.weight.data[:5] = 0
    model.save_pretrained(root)
    step = wanda(root, tmp_path / "out", notes)
    assert notes == ["model.layers.0.mlp.down_proj: 5 inputs were never active; their weights go first"]
    name = "model.layers.0.mlp.down_proj.weight"
    assert not step.read([name])[name][:, :5].any()


def test_a_model_that_overflows(tiny_model, tmp_path):
    root = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(root)
    model.model.layers[0].mlp.down_proj.weight.data[:8].fill_(3e38)
    model.save_pretrained(root)
    with pytest.raises(RunError, match=r"inputs of model.layers.1.self_attn.q_proj hold NaN or Inf"):
        wanda(root, tmp_path / "out")
