import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import full_model
from compressor.measure.continuations import PROMPT_TOKENS, TOKENS, continuations, greedy, prompts
from compressor.measure.torch_session import TorchSession

pytestmark = pytest.mark.usefixtures("whole_continuations")


class Spelled:
    def decode(self, ids):
        return " ".join(map(str, ids))


def test_the_tokens_are_those_that_transformers_generates(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    prompt = torch.arange(12).reshape(1, 12) % 64
    model = full_model(checkpoint)
    model.generation_config.eos_token_id = None
    wanted = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, 12:].tolist()
    assert greedy(TorchSession.of(checkpoint), prompt.numpy(), 8) == wanted


def test_prompts_are_spread_over_the_text():
    tokens = torch.arange(10 * 64).reshape(10, 64)
    assert [int(prompt[0, 0]) // 64 for prompt in prompts(tokens)] == [0, 4, 9]
    assert {prompt.shape for prompt in prompts(tokens)} == {(1, PROMPT_TOKENS)}
    assert len(prompts(tokens[:1])) == 1


def test_both_are_kept_as_text(tiny_model):
    session = TorchSession.of(Checkpoint.open(tiny_model("llama")))
    (found,) = continuations(session, [np.arange(4).reshape(1, 4)], Spelled())
    assert found.prompt == "0 1 2 3"
    assert len(found.text.split()) == TOKENS
