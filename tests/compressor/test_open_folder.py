"""What answers for a folder."""

import shutil

import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.ledger import Ledger, StepRecord
from compressor.lowering import Lowering
from compressor.open_folder import open_folder
from compressor.registry import make_target


def silent(*_):
    pass


def test_of_a_run_the_artifact_answers(tiny_model, tmp_path):
    run = tmp_path / "out"
    Ledger("m", {}).save(tmp_path)
    lowering = Lowering(make_target("hf", {}), Checkpoint.open(tiny_model("llama")), silent)
    lowering.make(run / "artifact", StepRecord("hf"))
    (tmp_path / "ledger.json").rename(run / "ledger.json")
    answerer, prompter = open_folder(run, tmp_path / "scratch", silent)
    answerer.close()
    assert answerer.runtime.startswith("transformers")
    assert prompter.longest == 512

    shutil.rmtree(run / "artifact")
    with pytest.raises(InputError, match="is no artifact"):
        open_folder(run, tmp_path / "scratch", silent)


def test_of_runs_for_several_targets_one_has_to_be_named(tmp_path):
    for name in ("steps", "hf", "onnx-int4"):
        (tmp_path / name).mkdir()
    for name in ("hf", "onnx-int4"):
        Ledger("m", {}).save(tmp_path / name)
    with pytest.raises(InputError) as error:
        open_folder(tmp_path, tmp_path / "scratch", silent)
    assert f"Give one of the runs in it: {tmp_path / 'hf'}" in str(error.value.hint)
