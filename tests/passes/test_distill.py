import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass, parse_spec
from passes.prune_depth import without_layers

TOKENS = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(0))
QUICK = "epochs=3,batch_size=4,micro_batch=4,precision=float32,learning_rate=0.005"
LONGER = QUICK.replace("epochs=3", "epochs=10")
LLMC = Path(sys.executable).with_name("llmc")


def teacher_and_pruned(tiny_model, tmp_path):
    teacher = Checkpoint.open(tiny_model("llama", num_hidden_layers=4))
    return teacher, without_layers(teacher, {1}).rewrite(tmp_path / "pruned", lambda block: block, {})


def distil(spec, teacher, student, out):
    """The step that the pass makes, with its notes and losses."""
    one = make_pass(*parse_spec(spec))
    one.check(teacher)
    one.plan(student.architecture, student.schemes)
    context = PassContext(out, {"key": spec}, TOKENS, 0, lambda *_: None, [], teacher)
    step = one.apply(student, context)
    assert step.architecture == one.reshaped(student.architecture)
    return step, context


@torch.no_grad()
def divergence_from(teacher, student):
    theirs, ours = (
        torch.log_softmax(AutoModelForCausalLM.from_pretrained(one.root, dtype=torch.float32)(TOKENS).logits, -1)
        for one in (teacher, student)
    )
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("options", ["", ",lora_rank=8", ",loss=jsd,hidden=0.1", ",gradient_checkpointing=true"])
def test_a_pruned_model_draws_near_to_what_it_was_pruned_from(tiny_model, tmp_path, options):
    teacher, pruned = teacher_and_pruned(tiny_model, tmp_path)
    step, context = distil(f"distill:{QUICK}{options}", teacher, pruned, tmp_path / "02-distill")
    assert divergence_from(teacher, step) < 0.8 * divergence_from(teacher, pruned)
    assert step.dtype == pruned.dtype
    assert len(context.losses) == 6
    assert context.notes[0].startswith("6 steps of 4 windows; the loss went from")
    left = sorted(path.name for path in (tmp_path / "02-distill-training").iterdir())
    assert left in (["key.json", "losses.csv", "losses.png"], ["key.json", "losses.csv"])


def test_a_given_student_of_another_shape(tiny_model, tmp_path):
    teacher = Checkpoint.open(tiny_model("llama"))
    student = Checkpoint.open(tiny_model("qwen3", hidden_size=32, num_hidden_layers=1))
    step, _ = distil(f"distill:{QUICK},student={student.root}", teacher, teacher, tmp_path / "out")
    assert step.architecture.model_type == "qwen3"
    assert divergence_from(teacher, step) < divergence_from(teacher, student)


def test_a_given_teacher(tiny_model, tmp_path):
    teacher, pruned = teacher_and_pruned(tiny_model, tmp_path)
    given, _ = distil(f"distill:{QUICK},teacher={teacher.root}", pruned, pruned, tmp_path / "given")
    meant, _ = distil(f"distill:{QUICK}", teacher, pruned, tmp_path / "meant")
    weights = [{n: w for block in one.blocks() for n, w in block.weights.items()} for one in (given, meant)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_other_options_left_is_not_gone_on_from(tiny_model, tmp_path):
    teacher, pruned = teacher_and_pruned(tiny_model, tmp_path)
    stale = tmp_path / "out-training"
    (stale / "state-0000005").mkdir(parents=True)
    (stale / "key.json").write_text('{"key": "another"}')
    _, context = distil(f"distill:{QUICK}", teacher, pruned, tmp_path / "out")
    assert len(context.losses) == 6


def test_fewer_windows_than_processes(tiny_model):
    one = make_pass("distill", {"processes": 4, "batch_size": 4})
    assert one.settings(7, 0).batch_size == 4
    with pytest.raises(InputError, match="3 calibration windows cannot be shared out to 4 processes"):
        one.settings(3, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("temperature=0", "temperature=0.0 is not above 0"),
        ("top_k=0", "top_k=0 is not above 0"),
        ("epochs=-1", "epochs=-1.0 is not above 0"),
        ("hidden=-1", "hidden and processes are at least 0"),
        ("lora_rank=-1", "lora_rank=-1 is less than 0"),
        ("learning_rate=2", "outside"),
        ("batch_size=3,processes=2", "cannot be shared out to 2 processes"),
    ],
)
def test_options_that_cannot_be_meant(tiny_model, options, says):
    with pytest.raises(InputError, match=says):
        make_pass(*parse_spec(f"distill:{options}")).plan(Checkpoint.open(tiny_model("llama")).architecture, {})


def test_a_quantized_student(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    with pytest.raises(InputError, match="is already int4") as raised:
        make_pass("distill", {}).plan(architecture, {"lm_head": Scheme(4, 32)})
    assert "the pass qat" in raised.value.hint


@pytest.mark.parametrize(
    ("changed", "options", "says"),
    [
        ({"vocab_size": 320}, "", "The student has 320 tokens and the teacher 288"),
        ({"num_hidden_layers": 3}, "", "more than the teacher's"),
        ({"hidden_size": 32}, ",hidden=0.5", "Hidden states of width 32"),
    ],
)
def test_students_that_do_not_fit_are_refused_before_any_work(tiny_model, changed, options, says):
    teacher, student = Checkpoint.open(tiny_model("llama")), tiny_model("llama", **changed)
    with pytest.raises(InputError, match=says):
        make_pass(*parse_spec(f"distill:student={student}{options}")).check(teacher)
    with pytest.raises(InputError, match=says):
        given = make_pass(*parse_spec(f"distill:teacher={teacher.root}{options}"))
        given.plan(Checkpoint.open(student).architecture, {})


def test_a_student_whose_tokens_have_other_numbers(tiny_model):
    teacher, student = tiny_model("llama"), tiny_model("llama", num_hidden_layers=1)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert AutoTokenizer.from_pretrained(student).get_vocab()["a"] == vocabulary["a"]
    with pytest.raises(InputError, match=r"'[ab]' is token"):
        make_pass("distill", {"student": str(student)}).check(Checkpoint.open(teacher))


def compress(root, out, *more):
    text = root / "text.txt"
    text.write_text("A tale of two models, one of which taught the other. " * 80)
    return ["compress", root, "-t", "hf", "-o", out, "--pass", "prune-depth:fraction=0.25,precision=float32",
            "--pass", f"distill:{LONGER},save_every=1", "--calibration", text, "--samples", "16",
            "--length", "32", "--measure", "none", "--json", *more]  # fmt: skip


def test_a_killed_run_goes_on_with_the_same_losses_and_bytes(tiny_model, tmp_path, llmc_until):
    root = tiny_model("llama", num_hidden_layers=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([LLMC, *compress(root, whole)], check=True, capture_output=True)
    process = llmc_until("passes.distillation.trainer:Trainer._accumulate", 7, *compress(root, broken))
    assert list(broken.glob("steps/02-distill-training/state-*"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "steps" / "02-distill").exists()
    subprocess.run([LLMC, *compress(root, broken, "--resume")], check=True, capture_output=True)
    ledgers = [json.loads((out / "ledger.json").read_text()) for out in (whole, broken)]
    assert len(ledgers[0]["steps"][2]["losses"]) == 40
    assert ledgers[0]["steps"][2]["losses"] == ledgers[1]["steps"][2]["losses"], "bit for bit"
    assert ledgers[0]["artifact"]["digest"] == ledgers[1]["artifact"]["digest"]


def test_the_command_line_refuses_before_any_work(tiny_model, tmp_path, llmc):
    root, student = tiny_model("llama"), tiny_model("llama", num_hidden_layers=3)
    text = tmp_path / "text.txt"
    text.write_text("one two three " * 100)
    for more in (["--dry-run"], []):
        words = ["compress", root, "-t", "hf", "--pass", f"distill:student={student}", "--calibration", text]
        code, _, err = llmc(*words, "-o", tmp_path / "out", *more)
        assert code == 2
        assert "more than the teacher's" in err
        assert not (tmp_path / "out").exists()
