"""What steps and sessions answer, next to what transformers makes of the same model."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from compressor.measure.answers import CheckpointAnswerer, Continuation, Likelihood, SessionAnswerer
from compressor.measure.torch_session import TorchSession

TEXTS = [Continuation([7, 9, 11, 40, 41], 3), Continuation(list(range(30, 60)), 20), Continuation([5, 6], 1)]


def silent(done, total):
    assert done <= total


def never(found):
    return False


def written(answerer, prompt, limit, ended=never):
    (tokens,) = answerer.generate([prompt], limit, ended, silent)
    return tokens


def expected(root):
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager").eval()
    for text in TEXTS:
        with torch.no_grad():
            known = model(torch.tensor([text.tokens])).logits[0].log_softmax(-1)
        picked = known[text.first - 1 : -1].gather(1, torch.tensor(text.tokens[text.first :]).unsqueeze(1))
        yield Likelihood(float(picked.sum()), False)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_likelihoods_are_those_of_transformers(tiny_model, family):
    root = tiny_model(family)
    checkpoint = Checkpoint.open(root)
    for answerer in (CheckpointAnswerer(checkpoint), SessionAnswerer(TorchSession.of(checkpoint))):
        found = answerer.likelihoods(TEXTS, silent)
        for one, known in zip(found, expected(root), strict=True):
            assert one.total == pytest.approx(known.total, abs=2e-3)


def test_texts_in_many_groups_are_answered_in_order(tiny_model, monkeypatch):
    answerer = CheckpointAnswerer(Checkpoint.open(tiny_model("llama")))
    together = answerer.likelihoods(TEXTS, silent)
    monkeypatch.setattr("compressor.measure.answers.STATES_BYTES", 1)
    assert [one.total for one in answerer.likelihoods(TEXTS, silent)] == pytest.approx([one.total for one in together])


def test_greedy_is_known_by_its_likelihood(tiny_model):
    root = tiny_model("llama")
    answerer = CheckpointAnswerer(Checkpoint.open(root))
    prompt = [3, 4, 5]
    tokens = written(answerer, prompt, 6)
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    reference = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert tokens == reference[0, 3:].tolist()
    (own,) = answerer.likelihoods([Continuation(prompt + tokens, 3)], silent)
    (other,) = answerer.likelihoods([Continuation([*prompt, *tokens[:-1], tokens[-1] ^ 1], 3)], silent)
    assert (own.greedy, other.greedy) == (True, False)
    assert written(answerer, prompt, 6, lambda found: len(found) == 2) == tokens[:2]


def test_a_step_generates_with_its_inputs_rounded(tiny_model, llmc, tmp_path):
    """Generation and likelihoods of W8A8 are of the same model: what it writes is what it finds most likely."""
    passes = ("--pass", "rtn:bits=8,group_size=channel,activations=dynamic")
    code, _, said = llmc(
        "compress", tiny_model("llama"), "-t", "hf", *passes, "--measure", "none", "-o", tmp_path / "o"
    )
    assert code == 0, said
    answerer = CheckpointAnswerer(Checkpoint.open(tmp_path / "o" / "steps" / "01-rtn"))
    tokens = written(answerer, [3, 4, 5], 24)
    (own,) = answerer.likelihoods([Continuation([3, 4, 5, *tokens], 3)], silent)
    assert own.greedy


def test_a_step_with_an_fp8_cache_is_refused_to_generate(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    object.__setattr__(checkpoint, "kv_cache", True)
    with pytest.raises(RunError, match="fp8 key-value cache"):
        written(CheckpointAnswerer(checkpoint), [1], 2)


PROMPTS = [[7, 9, 11], list(range(30, 53)), [5], [60, 61, 62, 63, 64, 65]]


def ends_of_its_own(found):
    """An end that hangs on the tokens, so that rows of a batch end at different places."""
    return len(found) > 2 and found[-1] % 3 == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"])
def test_prompts_are_gone_on_with_in_batches_as_alone(tiny_model, family):
    """Padding in front, windows and learned positions among it: a row is what it is alone."""
    checkpoint = Checkpoint.open(tiny_model(family))
    one, three = (CheckpointAnswerer(checkpoint, batch_size) for batch_size in (1, 3))
    alone = one.generate(PROMPTS, 12, ends_of_its_own, silent)
    assert three.generate(PROMPTS, 12, ends_of_its_own, silent) == alone
    assert len({len(tokens) for tokens in alone}) > 1 or family == "gpt2"
    assert alone == [written(one, prompt, 12, ends_of_its_own) for prompt in PROMPTS]


def test_a_runtime_that_takes_one_text_is_asked_one_by_one(tiny_model):
    """A session without batches: the same answers, in the order of what was asked."""

    session = TorchSession.of(Checkpoint.open(tiny_model("llama")))
    names = ("runtime", "longest", "logits", "prefill", "decode", "close")
    without = SimpleNamespace(**{name: getattr(session, name) for name in names})
    single, several = SessionAnswerer(without, 3), SessionAnswerer(session, 3)
    assert single.generate(PROMPTS, 8, ends_of_its_own, silent) == several.generate(PROMPTS, 8, ends_of_its_own, silent)
    totals = [[one.total for one in answerer.likelihoods(TEXTS, silent)] for answerer in (single, several)]
    assert totals[0] == pytest.approx(totals[1], abs=1e-4)
