"""Make the text of the demo model, train its tokenizer and the model, and write everything beside this file.

    python examples/demo/train.py --steps 4000

Needs torch, transformers and tokenizers, no GPU and no network. How long it takes
is in the README that it writes; `--minutes 3` is enough to see it work.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from stories import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
VOCAB_SIZE = 1024
EVALUATION_CHARS, CALIBRATION_CHARS = 100_000, 200_000
NGRAM = 13
TOKENS_PER_STEP = 2048
WINDOW = 256
LONG_WINDOW = 1024

# A story is the system message; the model then answers questions about it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% endif %}"
)

README = """# The demo model

A Llama of {parameters:,} parameters (8 layers, hidden size 128, 4 heads, 2 key-value heads, tied head, vocabulary
{vocabulary}) in bfloat16. It was trained from nothing on text that `stories.py` makes: short stories in which people
move about, find things, hand them over and count what they own, closed by questions that only the story answers;
and small facts about numbers, order, animals and things. It is small enough to live in the repository.

Its limits: it is not trained to the end. It writes grammatical stories and knows most of the facts, but it often
copies the wrong object or place from the story into an answer. Rounding its weights to int4 costs little, so it
shows that a pipeline works, not which quantization method is better.

| file | what it is |
|---|---|
| `model/` | the checkpoint and its byte-level BPE tokenizer, as `transformers` writes them |
| `calibration.txt` | {calibration_stories} documents, separated by blank lines, never trained on |
| `evaluation.txt` | {evaluation_stories} documents, separated by blank lines, never trained on |
| `stories.py` | the seeded generator of all text |
| `train.py` | makes the texts, the tokenizer, the model and this file |

The three texts share no document and no run of {ngram} words inside a document.

Perplexity on `evaluation.txt`, bfloat16 weights computed in float32: **{perplexity:.3f}** per token
({loss:.4f} nats; windows of {window} tokens that do not overlap, {tokens:,} tokens). The windows begin wherever they
fall, mostly inside a story.

The system message of the chat template is the story and a user message is a question about it:

```python
story = "One Monday Mia and her friend Tom met in the park. Then Mia found a red ball on a bench and took it."
messages = [{{"role": "system", "content": story}}, {{"role": "user", "content": "Who has the red ball?"}}]
```

Made with `{command}` ({steps} steps of {step_tokens} tokens, {minutes:.0f} minutes on {threads} CPU
thread(s) of a shared machine). The text is the same in every run; the weights come close to these with the same steps.

Text and weights were made for this project and carry its licence, Apache-2.0.
"""


# --- text ----------------------------------------------------------------------------------------


def word_runs(document: str, length: int = NGRAM) -> set[tuple[str, ...]]:
    """All runs of ``length`` words in a document, without punctuation and case."""
    words = re.findall(r"\w+", document.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def unseen(source: Iterable[str], taken: set[tuple[str, ...]]) -> Iterator[str]:
    """The documents that share no run of words with what is already taken."""
    return (document for document in source if taken.isdisjoint(word_runs(document)))


def take_characters(source: Iterator[str], characters: int) -> list[str]:
    """Documents from ``source`` until they hold so many characters."""
    chosen: list[str] = []
    while sum(map(len, chosen)) < characters:
        chosen.append(next(source))
    return chosen


def make_splits(seed: int, training_documents: int) -> tuple[list[str], list[str], list[str]]:
    """Documents for evaluation, calibration and training.

    Evaluation is drawn first and freely; the later splits give way where they would repeat it, so that
    the evaluation text stays a fair sample of the generator.
    """
    evaluation = take_characters(documents(seed), EVALUATION_CHARS)
    taken = set().union(*map(word_runs, evaluation))
    calibration = take_characters(unseen(documents(seed + 1), taken), CALIBRATION_CHARS)
    taken = taken.union(*map(word_runs, calibration))
    training = list(islice(unseen(documents(seed + 2), taken), training_documents))
    return evaluation, calibration, training


# --- tokenizer -----------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts ``<s>`` in front, as Llama tokenizers do."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[UNK, BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=LONG_WINDOW,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int) -> torch.Tensor:
    """All texts as one row of token ids, [tokens].

    Most documents end with ``</s>`` so that generation stops; some run on after a blank line, as they do
    in the text files that perplexity is measured on.
    """
    rng = random.Random(seed)
    joined = [text + (f"{EOS}{BOS}" if rng.random() < 0.6 else "\n\n") for text in texts]
    # Blank lines must be tokenized together with what follows them, hence pieces of many documents.
    pieces = ["".join(joined[i : i + 500]) for i in range(0, len(joined), 500)]
    ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for piece in ids for token in piece])


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer so that transformers 4 and 5 both open it, with the chat template in its settings."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Version 5 writes a class name that version 4 does not have, and still reads the old one.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# --- model ---------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model; every linear layer takes a multiple of 128 inputs."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LONG_WINDOW,
        rms_norm_eps=1e-5,
        # One over the root of the width. The usual 0.02 suits wide models; here attention would start out flat
        # and learn to copy names from the context much later.
        initializer_range=128**-0.5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # What each layer adds is scaled by the depth, so that the sum over the layers starts at the size of one.
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data /= math.sqrt(2 * config.num_hidden_layers)
    return model


def draw_batch(stream: torch.Tensor, step: int) -> torch.Tensor:
    """Random windows of the stream, [batch, window].

    Every eighth batch has few long windows instead of many short ones, so that all positions are trained.
    """
    window = LONG_WINDOW if step % 8 == 7 else WINDOW
    starts = torch.randint(len(stream) - window, (TOKENS_PER_STEP // window,))
    return torch.stack([stream[start : start + window] for start in starts])


def learning_rate(progress: float, peak: float) -> float:
    """A short linear warm-up, then half a cosine down to zero; ``progress`` runs from 0 to 1."""
    if progress < 0.03:
        return peak * max(progress, 1e-3) / 0.03
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(model: LlamaForCausalLM, stream: torch.Tensor, steps: int, minutes: float | None, peak: float) -> int:
    """Train in place for so many steps, or for so many minutes if given, and return the number of steps."""
    optimizer = new_optimizer(model)
    start = time.monotonic()
    step, progress, recent = 0, 0.0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, peak)
        batch = draw_batch(stream, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        recent += loss.item() / 50
        passed = time.monotonic() - start
        progress = passed / (60 * minutes) if minutes else step / steps
        if step % 50 == 0:
            print(f"step {step}  loss {recent:.3f}  {progress:.0%}  {passed:.0f} s", flush=True)
            recent = 0.0
    return step


@torch.inference_mode()
def evaluate(folder: Path, text: str) -> tuple[float, int]:
    """Mean loss in nats of a saved model over windows of a text, in float32, and the number of tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"][0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in windows.split(16)]
    return (sum(losses) / len(windows)).item(), windows.numel()


# --- the whole -----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the demo text and train the demo model.")
    parser.add_argument("--steps", type=int, default=4000, help="training steps, however long they take")
    parser.add_argument("--minutes", type=float, help="train this long instead; the learning rate follows the clock")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--documents", type=int, default=60_000, help="documents of training text")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def command_line(arguments: argparse.Namespace) -> str:
    length = f"--minutes {arguments.minutes:g}" if arguments.minutes else f"--steps {arguments.steps}"
    return f"python examples/demo/train.py {length}"


def write_texts(out: Path, evaluation: list[str], calibration: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.txt").write_text("\n\n".join(evaluation) + "\n", encoding="utf-8")
    (out / "calibration.txt").write_text("\n\n".join(calibration) + "\n", encoding="utf-8")


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)

    evaluation, calibration, training = make_splits(arguments.seed, arguments.documents)
    write_texts(arguments.out, evaluation, calibration)

    tokenizer = train_tokenizer(training)
    stream = token_stream(tokenizer, training, arguments.seed)
    print(f"{len(training)} documents, {len(stream)} tokens of training text", flush=True)

    model = new_model(tokenizer)
    start = time.monotonic()
    steps = train(model, stream, arguments.steps, arguments.minutes, arguments.learning_rate)
    minutes = (time.monotonic() - start) / 60
    model.to(torch.bfloat16).save_pretrained(arguments.out / "model")
    save_tokenizer(tokenizer, arguments.out / "model")

    loss, tokens = evaluate(arguments.out / "model", (arguments.out / "evaluation.txt").read_text(encoding="utf-8"))
    print(f"evaluation loss {loss:.4f}, perplexity {math.exp(loss):.3f}")
    facts = {
        "parameters": model.num_parameters(),
        "vocabulary": VOCAB_SIZE,
        "calibration_stories": len(calibration),
        "evaluation_stories": len(evaluation),
        "ngram": NGRAM,
        "perplexity": math.exp(loss),
        "loss": loss,
        "window": WINDOW,
        "tokens": tokens,
        "command": command_line(arguments),
        "steps": steps,
        "step_tokens": TOKENS_PER_STEP,
        "minutes": minutes,
        "threads": arguments.threads,
    }
    (arguments.out / "README.md").write_text(README.format(**facts), encoding="utf-8")


if __name__ == "__main__":
    main()
