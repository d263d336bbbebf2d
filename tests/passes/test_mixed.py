import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.pass_ import PassContext
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec
from compressor.writer import STEP_FILE
from passes import mixed
from passes.mixed import fused_groups, parse_candidate, stored_bits

TOKENS = torch.randint(0, 256, (32, 64), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(0, 256, (16, 64), generator=torch.Generator().manual_seed(1))


def run(spec, root, out):
    """The new checkpoint and the notes."""
    one, checkpoint = make_pass(*parse_spec(spec)), Checkpoint.open(root)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    notes: list[str] = []
    return one.apply(checkpoint, PassContext(Path(out), {"key": "k"}, TOKENS, 0, lambda *_: None, notes)), notes


def linears_of(checkpoint):
    """Quantized linears by name."""
    weights = checkpoint.read([f"{name}.weight" for name in checkpoint.schemes])
    return {name.removesuffix(".weight"): weight for name, weight in weights.items()}


def bits_per_weight(checkpoint):
    weights = linears_of(checkpoint).values()
    return sum(weight.storage_bits for weight in weights) / sum(weight.codes.numel() for weight in weights)


def table_of(checkpoint):
    return json.loads((checkpoint.root / STEP_FILE).read_text())["sensitivity"]


@torch.no_grad()
def divergence(original, changed):
    """KL(original || changed) on text of its own, in nats a token."""
    chances = []
    for checkpoint in (original, changed):
        decoder = Decoder(checkpoint)
        chances.append((decoder.logits(decoder.final_states(HELD_OUT), decoder.head())).log_softmax(-1))
    return float((chances[0].exp() * (chances[0] - chances[1])).sum(-1).mean())


@pytest.mark.parametrize("bits", [4.5, 6.25])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_the_budget_is_kept_and_used_and_fused_layers_agree(tiny_model, tmp_path, bits, symmetric):
    root = tiny_model("llama", num_hidden_layers=3)
    result, notes = run(f"mixed:bits={bits},symmetric={symmetric}", root, tmp_path / "step")
    stored = bits_per_weight(result)
    assert bits - 0.4 < stored <= bits
    assert f"{stored:.3f} bits per weight" in notes[0]
    assert len(set(result.schemes.values())) > 1
    for group in fused_groups(result.schemes):
        assert len({result.schemes[name] for name in group}) == 1


def test_sizes_are_those_of_the_stored_weights(tiny_model, tmp_path):
    result, _ = run("mixed:bits=5,symmetric=false", tiny_model("llama"), tmp_path / "step")
    for name, weight in linears_of(result).items():
        assert stored_bits(result.schemes[name], tuple(weight.codes.shape)) == weight.storage_bits


def test_the_step_file_holds_what_was_measured_and_chosen(tiny_model, tmp_path):
    result, notes = run("mixed:bits=5", tiny_model("llama"), tmp_path / "step")
    table = table_of(result)
    assert sorted(name for row in table for name in row["linears"]) == sorted(result.schemes)
    for row in table:
        assert {result.schemes[name] for name in row["linears"]} == {parse_candidate(row["chosen"], True)}
        assert row["divergence"]["8channel"] < row["divergence"]["4g32"] < row["divergence"]["4g64"]
    expected = sum(row["divergence"][row["chosen"]] for row in table)
    assert f"divergence of {expected:.3g} nats" in notes[2]
    worst = max(table, key=lambda row: row["divergence"][row["chosen"]])
    assert f"most of it from {worst['linears'][0]} " in notes[3]


def test_what_the_sensitivities_add_up_to_is_then_measured(tiny_model, tmp_path):
    root = tiny_model("llama")
    result, _ = run("mixed:bits=5,precision=float32", root, tmp_path / "step")
    expected = sum(row["divergence"][row["chosen"]] for row in table_of(result))
    assert divergence(Checkpoint.open(root), result) == pytest.approx(expected, rel=0.25)


def test_it_is_closer_to_the_original_than_one_scheme_of_the_same_size(tiny_model, tmp_path):
    root = tiny_model("llama", num_hidden_layers=4)
    original = Checkpoint.open(root)
    chosen, _ = run("mixed:bits=4.5,group_size=channel", root, tmp_path / "mixed")
    uniform, _ = run("gptq:group_size=32", root, tmp_path / "uniform")
    assert bits_per_weight(chosen) <= bits_per_weight(uniform) == 4.5
    assert divergence(original, chosen) < divergence(original, uniform)


def test_a_large_budget_gives_the_best_and_the_smallest_one_the_smallest(tiny_model, tmp_path):
    root = tiny_model("llama")
    best, _ = run("mixed:bits=9", root, tmp_path / "best")
    assert set(best.schemes.values()) == {Scheme(8, None)}
    smallest, _ = run("mixed:bits=4.25,group_size=64", root, tmp_path / "smallest")
    assert set(smallest.schemes.values()) == {Scheme(4, 64)}


def test_rounding_is_that_of_gptq(tiny_model, tmp_path):
    root = tiny_model("llama")
    chosen, _ = run("mixed:bits=4.25,group_size=64", root, tmp_path / "mixed")
    uniform, _ = run("gptq:group_size=64", root, tmp_path / "gptq")
    for one, other in zip(linears_of(chosen).values(), linears_of(uniform).values(), strict=True):
        assert one.same_bits(other)


def test_the_step_opens_in_transformers_with_equal_logits(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    result, _ = run("mixed:bits=5.5", tiny_model("qwen2", tied=False), tmp_path / "step")
    assert len(set(result.schemes.values())) > 1
    decoder = Decoder(result)
    ours = decoder.logits(decoder.final_states(TOKENS[:2]), decoder.head())
    model = AutoModelForCausalLM.from_pretrained(result.root)
    torch.testing.assert_close(model(TOKENS[:2]).logits, ours, atol=2e-4, rtol=1e-4)


def test_skipped_layers_are_outside_the_budget_and_the_head_has_its_own_bits(tiny_model, tmp_path):
    root = tiny_model("llama", tied=False)
    result, _ = run("mixed:bits=5,group_size=64,skip=*.k_proj,lm_head=8", root, tmp_path / "step")
    assert result.schemes["lm_head"] == Scheme(8, 64)
    assert not any(name.endswith("k_proj") for name in result.schemes)
    body = {name: weight for name, weight in linears_of(result).items() if name != "lm_head"}
    assert all(isinstance(weight, QuantizedWeight) for weight in body.values())
    assert sum(weight.storage_bits for weight in body.values()) <= 5 * sum(w.codes.numel() for w in body.values())


def test_the_plan_shows_each_linear_with_each_candidate(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", num_hidden_layers=4)).architecture
    planned = make_pass("mixed", {"group_size": 128}).plan(architecture, {})
    met = {(name.rpartition(".")[2], scheme) for name, scheme in planned.items()}
    narrow, wide = [Scheme(4, 64), Scheme(4, 32), Scheme(8, None)], [Scheme(4, 128)]
    for linear in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert {scheme for name, scheme in met if name == linear} == set(narrow)
    assert {scheme for name, scheme in met if name == "down_proj"} == set(narrow + wide)
    assert set(planned) == set(architecture.linears()) - {"lm_head"}


def test_fused_groups_are_found_by_name(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    sizes = Counter(len(group) for group in fused_groups(name for name in architecture.linears() if name != "lm_head"))
    assert sizes == {3: 2, 2: 2, 1: 4}


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("mixed:bits=4.1", r"bits=4\.1 is less than the 4\.222 bits", "mixed:bits=4.23 works."),
        ("mixed:bits=4.3,candidates=4g32+8g32", r"less than the 4\.500 bits", "mixed:bits=4.5 works."),
        ("mixed:candidates=4g128", "No candidate has a group that divides the input width 64 of", "4channel"),
        ("mixed:lm_head=true", "head's bits are not chosen", "lm_head=8"),
        ("mixed:activations=dynamic", "rounds weights only", "Leave out"),
        ("mixed:skip=*_proj", "No layer is left", "skip"),
    ],
)
def test_what_cannot_be_done_is_refused_before_work(tiny_model, spec, message, hint):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match=message) as caught:
        make_pass(*parse_spec(spec)).plan(architecture, {})
    assert hint in caught.value.hint


def test_the_budget_that_the_hint_names_works(tiny_model, tmp_path):
    assert bits_per_weight(run("mixed:bits=4.23", tiny_model("llama"), tmp_path / "step")[0]) <= 4.23


def test_a_candidate_that_fits_nowhere_is_refused(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", intermediate_size=96)).architecture
    with pytest.raises(InputError, match="candidate 4g128 divides no layer's"):
        make_pass("mixed", {"candidates": ["4g128", "4g32"]}).plan(architecture, {})


def test_rounded_activations_leave_no_gradient(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    done = {"model.layers.0.mlp.up_proj": Scheme(8, None, activations=Activations())}
    with pytest.raises(InputError, match="has no gradient"):
        make_pass("mixed", {"skip": ["up_proj"]}).plan(architecture, done)


def test_unknown_candidates_are_refused():
    with pytest.raises(InputError, match="5g64"):
        make_pass("mixed", {"candidates": ["5g64"]})


def test_a_divergence_that_is_no_number_names_the_layer(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(mixed, "rounding_errors", lambda weight, *_: torch.full_like(weight, torch.inf))
    with pytest.raises(RunError, match=r"gradients of model\.layers\.0\.self_attn\.q_proj"):
        run("mixed:bits=5", tiny_model("llama"), tmp_path / "step")


@pytest.mark.parametrize("spec", ["mixed:bits=4.25,group_size=64", "mixed:bits=5.0,candidates=4g64+8channel", "mixed"])
def test_spelling_round_trips(spec):
    assert make_pass(*parse_spec(spec)).spelled() == spec
