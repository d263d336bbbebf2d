import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from compressor.families import FAMILIES
from passes.distillation.teacher import Lesson, Teacher, points, record

TOKENS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def recorded(root, folder, **changed):
    lesson = Lesson(**{"count": 8, "temperature": 2.0, "hidden": True, "products": torch.float32, **changed})
    record(Checkpoint.open(root), TOKENS, lesson, folder, lambda *_: None)
    return Teacher(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_the_model_in_transformers_says(tiny_model, tmp_path, family):
    kinds = {"layer_types": KINDS} if family == "gemma3_text" else {}
    root = tiny_model(family, num_hidden_layers=4, **kinds)
    teacher, samples = recorded(root, tmp_path / "teacher"), torch.tensor([2, 0])
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        output = model(TOKENS[samples], output_hidden_states=True)
    expected, indices = torch.log_softmax(output.logits / 2, -1).topk(8)
    told = teacher.likeliest(samples)
    torch.testing.assert_close(told.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    assert (told.indices == indices).float().mean() > 0.99
    for found, after in zip(teacher.hidden(samples), points(4), strict=True):
        torch.testing.assert_close(found.float(), output.hidden_states[after + 1], rtol=1e-2, atol=1e-2)


def test_depths_are_matched_by_their_share():
    assert points(30) == (7, 14, 21, 29)
    assert points(24) == (5, 11, 17, 23)
    assert points(2) == (0, 0, 1, 1)


def test_hidden_states_are_kept_where_they_are_asked_for(tiny_model, tmp_path):
    teacher = recorded(tiny_model("llama"), tmp_path / "teacher", hidden=False)
    assert teacher.hidden(torch.tensor([0])) is None
    assert not (tmp_path / "teacher" / "hidden.npy").exists()


def test_what_is_there_is_not_made_again(tiny_model, tmp_path):
    root, folder = tiny_model("llama"), tmp_path / "teacher"
    recorded(root, folder)
    before = (folder / "indices.npy").stat().st_mtime_ns
    recorded(root, folder)
    assert (folder / "indices.npy").stat().st_mtime_ns == before


def test_a_teacher_that_overflows(tiny_model, tmp_path):
    root = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(root)
    model.model.layers[0].mlp.down_proj.weight.data[:8].fill_(3e38)
    model.save_pretrained(root)
    with pytest.raises(RunError, match="NaN or Inf"):
        recorded(root, tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
