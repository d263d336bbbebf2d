"""What is computed by an artifact that is made has to be numbers."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.ledger import StepRecord
from compressor.lowering import Lowering
from compressor.registry import make_target

LARGEST_FLOAT16 = 65504.0


@pytest.fixture
def stretched(tiny_model):
    """A model whose MLPs give up to so large numbers."""

    def make(largest):
        root = tiny_model("llama")
        tensors = load_file(root / "model.safetensors")
        for name, tensor in tensors.items():
            if name.endswith("down_proj.weight"):
                tensors[name] = tensor / tensor.abs().max() * largest
        save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
        return root

    return make


def refused(root, target, out):
    lowering = Lowering(make_target(target, {}), Checkpoint.open(root), lambda *_: None)
    with pytest.raises(InputError) as error:
        lowering.make(out, StepRecord(target))
    assert list(out.parent.iterdir()) == [], "nothing is kept"
    return error.value


def test_numbers_beyond_float16_are_refused_with_the_cause_and_a_remedy(stretched, tmp_path):
    pytest.importorskip("onnxruntime")
    root = stretched(LARGEST_FLOAT16 / 2)
    error = refused(root, "onnx-fp16", tmp_path / "out" / "artifact")
    assert "The logits of the artifact are not finite in onnxruntime" in str(error)
    assert "too large for the dtype that onnx-fp16 computes in. float16 ends at 65504." in str(error)
    assert "onnx-fp32" in str(error.hint)
    row = StepRecord("onnx-fp32")
    Lowering(make_target("onnx-fp32", {}), Checkpoint.open(root), lambda *_: None).make(tmp_path / "fine", row)


def test_a_model_that_computes_no_numbers_itself_is_told_apart(stretched, tmp_path):
    root = stretched(torch.finfo(torch.float32).max / 2)
    error = refused(root, "hf", tmp_path / "out" / "artifact")
    assert "of the model that it was made from are not finite either, computed in float32" in str(error)
