"""Checkpoints of parameters of two steps compute what transformers computes from such a state dict."""

import pytest
import torch

from compressor.bisect.swapped import Swapped
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, full_model
from compressor.pass_ import PassContext
from compressor.registry import make_pass

TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture
def steps(tiny_model, tmp_path):
    """(before, after) of rounding, the head too, which unties it."""

    def make(family, name="rtn", **options):
        before = Checkpoint.open(tiny_model(family))
        context = PassContext(tmp_path / family, {}, None, 0, lambda *_: None, [])
        return before, make_pass(name, options).apply(before, context)

    return make


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(TOKENS), decoder.head())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("whole", [True, False])
def test_some_layers_of_the_step_before(steps, family, whole):
    before, after = steps(family, group_size=32)
    first, *_, last = after.architecture.block_linears(1)
    prefixes = (after.architecture.modules.block(1),) if whole else (f"{first}.", f"{last}.")
    swapped = Swapped.of(after, before, prefixes)
    model, theirs = full_model(after), full_model(before).state_dict()
    model.load_state_dict({name: theirs[name] for name in theirs if name.startswith(prefixes)}, strict=False)
    with torch.no_grad():
        expected = model(TOKENS).logits
    torch.testing.assert_close(logits(swapped), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits(swapped), logits(after))


@pytest.mark.parametrize("options", [{"lm_head": True, "group_size": 32}, {"group_size": "channel"}])
def test_all_blocks_are_the_step_before_and_none_the_step(steps, options):
    before, after = steps("llama", **options)
    modules = after.architecture.modules
    prefixes = [prefix for block in after.block_names for prefix in modules.prefixes(block)]
    everything, nothing = (Swapped.of(after, before, taken) for taken in (prefixes, []))
    assert torch.equal(logits(everything), logits(before))
    assert torch.equal(logits(nothing), logits(after))
    assert (everything.nbytes, nothing.nbytes) == (before.nbytes, after.nbytes)


def test_a_quantized_table_that_a_head_is_tied_to(steps):
    before, after = steps("llama", "embeddings")
    assert torch.equal(logits(Swapped.of(after, before, ["model.embed_tokens."])), logits(before))
