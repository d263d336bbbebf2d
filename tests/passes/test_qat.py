import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from compressor.registry import make_pass, parse_spec
from passes.distillation.job import Job, run
from passes.distillation.quantizer import QuantizedStudent
from passes.distillation.teacher import Lesson, record
from passes.distillation.trainer import Settings

TOKENS = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(0))
QUICK = "group_size=32,epochs=2,batch_size=4,micro_batch=4,precision=float32,top_k=288,learning_rate=0.01"


def make(spec, root, out, tokens=TOKENS):
    """The step that a pass makes, and its context."""
    one, checkpoint = make_pass(*parse_spec(spec)), Checkpoint.open(root)
    planned = one.plan(checkpoint.architecture, checkpoint.schemes)
    context = PassContext(out, {"key": spec}, tokens, 0, lambda *_: None, [], checkpoint)
    step = one.apply(checkpoint, context)
    assert dict(step.schemes) == planned, "the plan is what is done"
    return step, context


@torch.no_grad()
def divergence(root, step):
    """KL(original || step), as our decoder runs both."""
    logits = []
    for checkpoint in (Checkpoint.open(root), step):
        decoder = Decoder(checkpoint)
        logits.append(torch.log_softmax(decoder.logits(decoder.final_states(TOKENS), decoder.head()), -1))
    return float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())


def quantized(step):
    return {n: w for block in step.blocks() for n, w in block.weights.items() if isinstance(w, QuantizedWeight)}


@pytest.mark.parametrize(
    ("family", "start", "options"),
    [
        ("gpt2", "rtn", ""),
        ("phi3", "rtn", ",symmetric=false"),
        ("llama", "rtn", ",bits=8"),
        ("llama", "gptq", ",precision=float32"),
    ],
)
def test_it_is_closer_to_the_original_than_what_it_started_from(tiny_model, tmp_path, family, start, options):
    root = tiny_model(family)
    before, _ = make(f"{start}:group_size=32{options}", root, tmp_path / "before")
    named = {"rtn": "nearest"}.get(start, start)
    options = f"{options},learning_rate={0.003 if start == 'gptq' else 0.02}"
    step, context = make(f"qat:{QUICK},epochs=12,start={named}{options}", root, tmp_path / "step")
    assert divergence(root, step) < 0.95 * divergence(root, before)
    assert len(context.losses) == 24
    pairs = zip(quantized(step).values(), quantized(before).values(), strict=True)
    assert not any(first.same_bits(second) for first, second in pairs)
    assert not (tmp_path / "step-training" / "start").exists()


def test_what_was_trained_is_what_is_stored(tiny_model, tmp_path):
    root = tiny_model("llama")
    start, _ = make("rtn:group_size=32", root, tmp_path / "start")
    student = QuantizedStudent(Checkpoint.open(root), start)
    optimizer = student.optimizer()
    optimizer.param_groups[0]["lr"] = 0.2
    for _ in range(3):
        student.model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    state, moved = student.model.state_dict(), 0
    for block in start.blocks():
        for name, weight in student.weights(block).items():
            assert torch.equal(weight.dequantize(), state[name])
            moved += int((weight.codes != block.weights[name].codes).sum())
    assert moved > 100
    assert {name for name, one in student.model.named_parameters() if one.requires_grad} == set(quantized(start))


def test_an_interrupted_run_has_the_losses_and_integers_of_a_whole_one(tiny_model, tmp_path):
    root = tiny_model("llama")
    start, _ = make("rtn:group_size=32,symmetric=false", root, tmp_path / "start")
    record(Checkpoint.open(root), TOKENS, Lesson(16, 1.0, False, torch.float32), tmp_path / "teacher", lambda *_: None)
    settings = Settings("forward_kl", 1.0, 0.0, 6, 4, 4, 0.05, 1, "no", False, 2, 0)
    whole = Job(root, start.root, tmp_path / "teacher", tmp_path / "a", tmp_path / "whole", {}, 0, None, settings)
    broken = dataclasses.replace(whole, folder=tmp_path / "b", out=tmp_path / "broken")
    losses = []
    for job in (whole, broken):
        job.folder.mkdir()

    def stop(done, _total):
        if done == 5:
            raise KeyboardInterrupt

    run(whole, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run(broken, stop)
    assert [path.name for path in broken.folder.glob("state-*")] == ["state-0000004"]
    run(broken, lambda *_: None)
    losses = [(job.folder / "losses.csv").read_text() for job in (whole, broken)]
    assert losses[0] == losses[1], "bit for bit"
    first, second = (quantized(Checkpoint.open(job.out)) for job in (whole, broken))
    assert all(first[name].same_bits(second[name]) for name in first)


def test_a_folder_to_start_from(tiny_model, tmp_path):
    root = tiny_model("llama")
    before, _ = make("gptq:group_size=32,precision=float32", root, tmp_path / "before")
    given, _ = make(f"qat:{QUICK},start={before.root}", root, tmp_path / "given")
    named, _ = make(f"qat:{QUICK},start=gptq", root, tmp_path / "named")
    assert all(weight.same_bits(quantized(named)[name]) for name, weight in quantized(given).items())
    with pytest.raises(InputError, match="are not int4 g64 symmetric"):
        make(f"qat:group_size=64,start={before.root}", root, tmp_path / "other")


def test_transformers_opens_it(tiny_model, tmp_path):
    step, _ = make(f"qat:{QUICK}", tiny_model("llama"), tmp_path / "step")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(step.root, dtype=torch.float32)(TOKENS).logits
    decoder = Decoder(step)
    expected = decoder.logits(decoder.final_states(TOKENS), decoder.head())
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("lm_head=true", "leaves lm_head as it is"),
        ("group_size=32,start=nowhere", "neither nearest, gptq, tune nor a folder"),
        ("group_size=128", "does not divide"),
        ("temperature=0", "is not above 0"),
    ],
)
def test_options_that_cannot_be_done(tiny_model, options, says):
    with pytest.raises(InputError, match=says):
        make_pass(*parse_spec(f"qat:{options}")).plan(Checkpoint.open(tiny_model("llama")).architecture, {})


def test_a_model_that_is_quantized_already(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    first = next(iter(architecture.linears()))
    with pytest.raises(InputError, match="a weight is rounded once"):
        make_pass(*parse_spec("qat:group_size=32")).plan(architecture, {first: Scheme(4, 32)})
