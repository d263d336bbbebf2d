import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.measure.accuracy import Reference
from compressor.measure.difference import LIKELY, difference
from compressor.measure.torch_session import TorchSession

TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


class Changed(TorchSession):
    """The model with something done to its logits [length, vocabulary]."""

    def logits(self, tokens):
        ((_, rows),) = super().logits(tokens)
        yield 0, self.change(rows.copy(), tokens)


@pytest.fixture
def reference(tiny_model, tmp_path):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    return Reference.make(checkpoint, TOKENS, tmp_path / "states.npy", lambda *_: None)


@pytest.fixture
def session(reference):
    def make(change):
        made = Changed.of(reference.checkpoint)
        made.change = change
        return made

    return make


def silent(*_):
    pass


def test_the_model_itself_is_not_apart(reference, session):
    found = difference(session(lambda rows, tokens: rows), reference, silent)
    assert found.largest < 1e-4
    assert abs(found.kl.value) < 1e-6
    assert found.top1.value == 1
    assert found.positions == 3 * 19


def test_figures_are_those_of_whole_logits(reference, session):
    noise = np.random.default_rng(0).normal(size=(20, 288)).astype(np.float32)
    found = difference(session(lambda rows, tokens: rows + noise), reference, silent)
    p = TorchSession.of(reference.checkpoint)._model(TOKENS).logits[:, :-1].double().log_softmax(-1)
    q = (p + torch.from_numpy(noise[:-1]).double()).log_softmax(-1)
    likely = p.topk(LIKELY).indices
    apart = (p - q).gather(2, likely).abs()
    assert found.largest == pytest.approx(apart.max().item(), rel=1e-3)
    assert found.mean == pytest.approx(apart.mean().item(), rel=1e-3)
    assert found.kl.value == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3)
    assert found.top1.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())


def test_one_wrong_position_is_found_and_located(reference, session):
    def change(rows, tokens):
        if np.array_equal(tokens, TOKENS[1].numpy()):
            rows[4] = np.roll(rows[4], 1)
        return rows

    found = difference(session(change), reference, silent)
    assert found.where == (1, 4)
    assert found.largest > 1
    assert found.top1.value == pytest.approx(1 - 1 / 57)


def test_what_a_runtime_does_not_tell_counts_as_the_least_that_it_tells(reference, session):
    def change(rows, tokens):
        rows -= np.log(np.exp(rows).sum(1, keepdims=True))
        least = np.sort(rows, axis=1)[:, -20, None]
        best = rows.argmax(1)
        rows[rows < least] = -np.inf
        apart.extend((rows[np.arange(len(rows)), best] - least[:, 0])[:-1])
        rows[np.arange(len(rows)), best] = -np.inf
        return rows

    apart = []
    assert difference(session(change), reference, silent).largest == pytest.approx(max(apart), rel=1e-3)
