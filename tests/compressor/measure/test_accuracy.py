import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.measure.accuracy import Reference, checkpoint_scores, divergence, log_probabilities, session_scores
from compressor.quantized import Scheme
from passes.grid import fit_grid, quantize

TOKENS = torch.randint(0, 256, (6, 40), generator=torch.Generator().manual_seed(0))


def silent(*_):
    pass


@pytest.fixture
def original(tiny_model):
    return Checkpoint.open(tiny_model("llama"))


@pytest.fixture
def rounded(original, tmp_path):
    def edit(block):
        scheme = Scheme(4, 32)
        changed = {
            n: quantize(w, scheme, fit_grid(w, scheme, None, False)) for n, w in block.weights.items() if "_proj" in n
        }
        return block.with_weights(changed)

    return original.rewrite(tmp_path / "rounded", edit, {})


def by_hand(original, candidate):
    """Perplexity, KL and agreement from whole logits of transformers, in float64."""
    from transformers import AutoModelForCausalLM

    p, q = (
        torch.log_softmax(AutoModelForCausalLM.from_pretrained(c.root)(TOKENS).logits[:, :-1].double(), -1)
        for c in (original, candidate)
    )
    losses = -q.gather(2, TOKENS[:, 1:, None])[..., 0]
    kl = (p.exp() * (p - q)).sum(-1)
    return losses, kl, (p.argmax(-1) == q.argmax(-1)).double()


def test_figures_equal_those_from_whole_logits(original, rounded, tmp_path):
    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    quality = checkpoint_scores(rounded, reference, silent).quality
    losses, kl, same = by_hand(original, rounded)
    assert quality.perplexity.value == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert quality.kl.value == pytest.approx(kl.mean().item(), rel=1e-3)
    assert quality.top1.value == pytest.approx(same.mean().item())
    windows = kl.mean(1)
    assert quality.kl.stderr == pytest.approx((windows.std() / len(windows) ** 0.5).item(), rel=1e-3)


def test_the_original_does_not_differ_from_itself(original, tmp_path):
    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    quality = checkpoint_scores(original, reference, silent).quality
    assert quality.kl.value == 0
    assert quality.top1.value == 1
    assert quality.perplexity_increase.value == 0


def test_a_session_gives_the_same_figures_whatever_its_chunks(original, rounded, tmp_path):
    from compressor.measure.torch_session import TorchSession

    class Chunked(TorchSession):
        def logits(self, tokens):
            ((_, whole),) = super().logits(tokens)
            for start in range(0, len(whole), 7):
                yield start, whole[start : start + 7]

    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    streamed = checkpoint_scores(rounded, reference, silent).quality
    session = session_scores(Chunked.of(rounded), reference, silent).quality
    for name in ("perplexity", "kl", "top1", "perplexity_increase"):
        assert getattr(session, name).value == pytest.approx(getattr(streamed, name).value, abs=1e-4)


def test_many_small_parts_equal_one_large_one(original, rounded, tmp_path, monkeypatch):
    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    whole = checkpoint_scores(rounded, reference, silent).quality
    monkeypatch.setattr("compressor.measure.accuracy.LOGITS_AT_ONCE", 288 * 5)
    parts = checkpoint_scores(rounded, reference, silent).quality
    assert parts.kl.value == pytest.approx(whole.kl.value, rel=1e-4)
    assert parts.top1.value == whole.top1.value


def test_scores_are_those_of_every_token(original, rounded, tmp_path):
    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    found = checkpoint_scores(rounded, reference, silent)
    losses, kl, same = (values.detach().numpy() for values in by_hand(original, rounded))
    assert found.loss == pytest.approx(losses, abs=1e-4)
    assert found.kl == pytest.approx(kl, abs=1e-4)
    assert np.array_equal(found.same_top1, same.astype(bool))
    own = checkpoint_scores(original, reference, silent)
    assert np.array_equal(own.loss, found.original_loss)
    assert np.array_equal(own.correct, found.original_correct)


def test_one_window_has_no_standard_error(original, tmp_path):
    reference = Reference.make(original, TOKENS[:1], tmp_path / "states.npy", silent)
    assert checkpoint_scores(original, reference, silent).quality.perplexity.stderr is None


def test_reference_states_live_on_disk(original, tmp_path):
    reference = Reference.make(original, TOKENS, tmp_path / "states.npy", silent)
    stored = np.load(tmp_path / "states.npy", mmap_mode="r")
    assert stored.shape == (6, 40, 64)
    assert np.array_equal(stored, reference.states.numpy())


def test_tokens_that_are_not_told_count_as_one():
    """By hand, in float64: the listed tokens one by one, the others as one event; never more than the whole."""
    p, q = (torch.randn(5, 50, generator=torch.Generator().manual_seed(seed)).log_softmax(-1) for seed in (1, 2))
    told = q >= q.topk(10).values[:, -1:]
    told[:, 7] = True
    found = divergence(p, q.masked_fill(~told, -torch.inf))
    for row in range(5):
        a, b, known = p[row].double().exp(), q[row].double().exp(), told[row]
        listed = (a[known] * (a[known] / b[known]).log()).sum()
        rest = a[~known].sum() * (a[~known].sum() / b[~known].sum()).log()
        assert found[row].item() == pytest.approx((listed + rest).item(), rel=1e-5)
    assert bool((found < divergence(p, q)).all())


def test_rows_of_the_likeliest_tokens_are_log_probabilities_already():
    rows = torch.tensor([[-0.5, -torch.inf, -2.0]])
    assert torch.equal(log_probabilities(rows), rows)
    assert log_probabilities(torch.tensor([[1.0, 1.0]]))[0, 0].item() == pytest.approx(-np.log(2))
