import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from passes.distillation.curve import read_curve
from passes.distillation.job import LAST_GOOD, Job, launch, run
from passes.distillation.losses import divergence
from passes.distillation.student import whole_model
from passes.distillation.teacher import Lesson, Teacher, record
from passes.distillation.trainer import Settings
from passes.tune import draw_samples

TOKENS = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(0))
SETTINGS = Settings(
    loss="forward_kl", temperature=1.0, hidden=0.0, steps=6, batch_size=4, micro_batch=2, learning_rate=5e-3,
    warmup=2, mixed="no", checkpointing=False, save_every=2, seed=0,
)  # fmt: skip


@pytest.fixture
def job_of(tiny_model, tmp_path):
    """A factory of jobs on the same student and teacher, each with a folder of its own."""
    teacher, student = tiny_model("llama", num_hidden_layers=3), tiny_model("llama")
    lesson = Lesson(count=16, temperature=1.0, hidden=True, products=torch.float32)
    record(Checkpoint.open(teacher), TOKENS, lesson, tmp_path / "teacher", lambda *_: None)

    def make(name, lora_rank=0, dtype=None, **changed):
        folder = tmp_path / name
        folder.mkdir()
        settings = dataclasses.replace(SETTINGS, **changed)
        out = tmp_path / f"{name}-out"
        return Job(student, None, tmp_path / "teacher", folder, out, {"key": name}, lora_rank, dtype, settings)

    return make


def trained(job):
    run(job, lambda *_: None)
    return read_curve(job.folder), weights(job.out)


def weights(root):
    return {name: weight for block in Checkpoint.open(root).blocks() for name, weight in block.weights.items()}


def interrupted(job, after):
    def stop(done, _total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, stop)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_losses_and_weights_are_those_of_a_plain_loop(job_of):
    job = job_of("whole")
    teacher, model = Teacher(job.teacher), AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for step, samples in enumerate(draw_samples(8, 6, 4, 0)):
        loss = divergence(model(TOKENS[samples]).logits, teacher.likeliest(samples), "forward_kl", 1.0).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = SETTINGS.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    losses, found = trained(job)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, {name: model.state_dict()[name] for name in found}, rtol=1e-3, atol=1e-4)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("lora_rank", "save_every", "after"), [(0, 1, 4), (0, 2, 4), (0, 2, 5), (0, 4, 3), (4, 2, 5)])
def test_an_interrupted_run_has_the_losses_and_weights_of_a_whole_one(job_of, lora_rank, save_every, after):
    losses, expected = trained(job_of("whole", lora_rank, save_every=save_every))
    broken = job_of("broken", lora_rank, save_every=save_every)
    interrupted(broken, after)
    assert read_curve(broken.folder) == losses[:after]
    states = [path.name for path in broken.folder.glob("state-*")]
    kept = (after - 1) // save_every * save_every
    assert states == ([f"state-{kept:07}"] if kept else []), "one state, whose loss was seen to be finite"
    found, resumed = trained(broken)
    assert found == losses, "bit for bit"
    assert same(resumed, expected)


def test_a_half_written_state_is_not_gone_on_from(job_of):
    losses, _ = trained(job_of("whole"))
    broken = job_of("broken")
    interrupted(broken, 5)
    (broken.folder / ".state-0000005").mkdir()
    assert trained(broken)[0] == losses


@pytest.mark.parametrize("changed", [{"micro_batch": 4}, {"micro_batch": 1}, {"checkpointing": True}])
def test_what_only_saves_memory_changes_nothing(job_of, changed):
    losses, _ = trained(job_of("whole"))
    torch.testing.assert_close(trained(job_of("other", **changed))[0], losses, rtol=1e-4, atol=1e-5)


def test_bfloat16_learns_too(job_of):
    losses, _ = trained(job_of("whole", mixed="bf16"))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_other_divergences(job_of, loss):
    losses, _ = trained(job_of("whole", loss=loss, hidden=0.5, temperature=1.0))
    assert losses[-1] < 0.9 * losses[0]


def test_hidden_states_draw_near(job_of):
    without, _ = trained(job_of("without"))
    losses, _ = trained(job_of("with", hidden=1.0))
    assert losses[0] > without[0]
    assert losses[-1] - without[-1] < losses[0] - without[0]


def test_a_lora_is_merged_and_leaves_the_rest(job_of):
    job = job_of("lora", lora_rank=4)
    losses, found = trained(job)
    before = weights(job.student)
    assert losses[-1] < losses[0]
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in found if "_proj" in name}
    assert all(torch.linalg.matrix_rank(found[name] - before[name], rtol=1e-4) <= 4 for name in changed)


def test_weights_are_stored_as_the_student_was_or_in_float32(job_of):
    job = job_of("half")
    model = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.bfloat16)
    model.save_pretrained(job.student)
    _, kept = trained(job)
    _, exact = trained(job_of("exact", dtype="float32"))
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in exact.values()} == {torch.float32}
    assert same(kept, {name: weight.bfloat16() for name, weight in exact.items()}), "rounded once"


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_step(job_of, monkeypatch):
    losses, _ = trained(job_of("whole"))
    calls = []

    def spoiled(*arguments):
        calls.append(arguments)
        value = divergence(*arguments)
        return value * float("nan") if len(calls) > 8 else value  # the second half of the fifth step

    monkeypatch.setattr("passes.distillation.trainer.divergence", spoiled)
    job = job_of("broken")
    with pytest.raises(RunError, match=r"The loss of step 5 is not a number.*after step 2 is kept in") as raised:
        run(job, lambda *_: None)
    assert str(job.folder / LAST_GOOD) in str(raised.value)
    assert raised.value.hint == "Lower learning_rate."
    assert read_curve(job.folder) == losses[:4]
    assert not job.out.exists()
    assert json.loads((job.folder / LAST_GOOD / "llmc-step.json").read_text())["steps"] == 2
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(job.folder / LAST_GOOD)(TOKENS).logits
    assert logits.isfinite().all()


def test_a_loss_that_is_no_number_at_once(job_of, monkeypatch):
    spoiled = lambda *arguments: divergence(*arguments) * float("nan")  # noqa: E731
    monkeypatch.setattr("passes.distillation.trainer.divergence", spoiled)
    with pytest.raises(RunError, match=r"The loss of step 1 .* No step before it was kept"):
        run(job_of("broken"), lambda *_: None)


def test_a_later_rescue_takes_the_place_of_an_earlier_one(job_of, monkeypatch):
    job = job_of("broken")
    (job.folder / LAST_GOOD).mkdir()
    interrupted(job, 5)
    monkeypatch.setattr("passes.distillation.trainer.divergence", lambda *given: divergence(*given) * float("nan"))
    with pytest.raises(RunError, match="after step 4 is kept"):
        run(job, lambda *_: None)
    assert weights(job.folder / LAST_GOOD)


@pytest.mark.slow
def test_two_processes_share_a_step_out(job_of, hostile_folder, monkeypatch):
    monkeypatch.chdir(hostile_folder)
    losses, expected = trained(job_of("one", micro_batch=1))
    job, seen = job_of("two", micro_batch=1), []
    launch(job, 2, lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(read_curve(job.folder), losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(job.out), expected, rtol=1e-3, atol=1e-4)
    assert seen[-1][1] == 6


@pytest.mark.slow
def test_an_error_in_one_of_several_processes_is_told(job_of):
    job = job_of("two", learning_rate=1e30)
    with pytest.raises(RunError, match="is not a number"):
        launch(job, 2, lambda *_: None)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
def test_a_student_in_training_computes_what_the_model_computes(tiny_model, family):
    dropped = {"gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}}.get(
        family, {"attention_dropout": 0.5}
    )
    root = tiny_model(family, **dropped)
    model = whole_model(Checkpoint.open(root))
    assert model.training
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
