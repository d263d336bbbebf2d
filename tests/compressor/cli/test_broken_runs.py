"""Runs that break: exit code 4, nothing half-written, inputs untouched."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import InputError


def test_a_full_disk_leaves_nothing_half_written(compress, tiny_model, tmp_path, workload, monkeypatch):
    import errno

    from compressor import writer

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    root = tiny_model("llama")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    code, _, err = compress(root, tmp_path / "out", *workload)
    assert code == 4
    assert "full" in err
    assert list((tmp_path / "out" / "steps").iterdir()) == []
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_an_artifact_that_reads_back_differently_never_appears(compress, tiny_model, tmp_path, workload, monkeypatch):
    from targets import huggingface

    honest = huggingface.HuggingFace.lower

    def damaging(self, checkpoint, out, progress):
        notes = honest(self, checkpoint, out, progress)
        shard = out / "model.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return notes

    monkeypatch.setattr(huggingface.HuggingFace, "lower", damaging)
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", *workload)
    assert code == 4
    assert "1 of 20 weights changed" in err
    assert not (tmp_path / "out" / "artifact").exists()


CONSTANT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def constant(tiny_model):
    """A model with a matrix of one value, which is found when the weights are read."""
    root = tiny_model("llama")
    tensors = load_file(root / "model.safetensors") | {CONSTANT: torch.full((128, 64), 0.25)}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.mark.parametrize("measure", [(), ("--measure", "none")], ids=["measured", "not measured"])
@pytest.mark.parametrize("targets", [("hf",), ("hf", "onnx-int4")], ids=["one", "two"])
def test_bad_input_that_is_found_late_leaves_no_folder(llmc, constant, tmp_path, text, measure, targets):
    out, measure = tmp_path / "out", measure or ("--eval", text, "--eval-length", 64)
    words = (*(word for target in targets for word in ("-t", target)), "--pass", "rtn:group_size=32", *measure)
    code, _, err = llmc("compress", constant, *words, "-o", out)
    assert (code, f"all values of tensor {CONSTANT} are 0.25" in err) == (2, True)
    assert not out.exists()
    out.mkdir()
    assert llmc("compress", constant, *words, "-o", out)[0] == 2
    assert out.is_dir(), "somebody else made it"


def test_bad_input_that_is_found_after_a_step_keeps_it(llmc, tiny_model, tmp_path, monkeypatch):
    from passes.rtn import RTN

    def refuse(*_, **__):
        raise InputError("No.")

    monkeypatch.setattr(RTN, "edit", refuse)
    out, passes = tmp_path / "out", ("--pass", "rotate", "--pass", "rtn:group_size=32")
    words = ("compress", tiny_model("llama"), "-t", "hf", *passes, "--measure", "none", "-o", out)
    assert llmc(*words)[0] == 2
    step = next((out / "steps").iterdir())
    kept = (step / "model.safetensors").stat().st_mtime_ns
    monkeypatch.undo()
    assert llmc(*words, "--resume")[0] == 0
    assert (step / "model.safetensors").stat().st_mtime_ns == kept


def test_an_interrupted_run_says_how_to_go_on(compress, tiny_model, tmp_path, workload, monkeypatch):
    from passes.rtn import RTN

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(RTN, "edit", interrupt)
    out = tmp_path / "out"
    code, _, err = compress(tiny_model("llama"), out, *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err
    assert list((out / "steps").iterdir()) == []
    monkeypatch.undo()
    code, _, _ = compress(tiny_model("llama"), out, *workload, "--resume", spec="rtn:group_size=32")
    assert code == 0


def test_an_extension_that_mistakes_an_interrupt_for_an_error_is_still_an_interrupt(
    compress, tiny_model, tmp_path, workload, monkeypatch
):
    import signal

    from passes.rtn import RTN

    def extension(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(RTN, "edit", extension)
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err


@pytest.mark.parametrize("when", ["judged", "timed"])
def test_a_runtime_that_dies_keeps_what_it_told_and_the_row_says_so(
    llmc, compress, tiny_model, tmp_path, workload, monkeypatch, when
):
    from compressor.errors import RunError
    from compressor.ledger import load_ledger
    from targets.onnx.session import OnnxSession

    calls = {"logits": 0, "prefill": 0}
    honest = {name: getattr(OnnxSession, name) for name in calls}

    def dying(name, after):
        def call(self, tokens, *limit):
            if (self._root.name, self._level) == ("artifact", None):
                calls[name] += 1
                if calls[name] > after:
                    raise RunError("The server ended with code 9.")
            return honest[name](self, tokens, *limit)

        return call

    name, after = ("logits", 3) if when == "judged" else ("prefill", 4)
    monkeypatch.setattr(OnnxSession, name, dying(name, after))
    out, words = tmp_path / "out", {"spec": "rtn:group_size=32", "target": "onnx-int4"}
    root = tiny_model("llama")
    code, _, err = compress(root, out, *workload, **words)
    assert code == 0, err
    shipped = load_ledger(out).steps[-1]
    assert "The server ended with code 9" in shipped.not_run
    assert shipped.quality is not None
    others = [row for row in load_ledger(out).steps[:-1] if row.runtime and row.runtime.startswith("onnxruntime")]
    assert others
    assert all(row.quality is not None and row.latency and row.not_run is None for row in others)
    if when == "judged":
        assert shipped.samples.count == after * 63
        assert f"it broke after {after} of" in shipped.not_run
        code, _, err = llmc("gate", out, "--max-kl", "9")
        assert (code, "was judged on a part of the text only: it broke after 3 of" in err) == (2, True)
    else:
        assert "repeats" in shipped.not_run
    monkeypatch.undo()
    assert compress(root, out, *workload, "--resume", **words)[0] == 0
    again = load_ledger(out).steps[-1]
    assert again.not_run is None
    assert again.latency
