"""Fixtures shared by all test folders: tiny random models and their byte-level tokenizer.

`tiny_model` is a factory, `tiny_model(family, tied=True, **overrides) -> Path`, for an ordinary Hugging Face folder
in float32: hidden 64, intermediate 128, 2 layers, 4 heads, 2 key-value heads, head_dim 16, vocabulary 288 (a multiple
of 32, as the packed formats want; the tokenizer uses the first 259 ids). Overrides are keys of config.json. Equal
arguments give equal bytes; every call gives a folder of its own, copied from one that is made once. `adapter_of` makes
PEFT adapters for them. `llmc` runs the command line; `llmc_until` starts it as a process that can be interrupted at a
named call.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("local", deadline=None)  # no test is timed
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

TINY_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 288,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
# What a family has of its own: other keys, or defaults that hide a trait at this size.
OWN_CONFIG: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0,
               "final_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"partial_rotary_factor": 0.5},
    "gpt2": {"n_inner": 128, "intermediate_size": None, "num_key_value_heads": None, "head_dim": None},
}  # fmt: skip
ENGINES = ("LLMC_ENGINE_VLLM", "LLMC_ENGINE_LLAMA_CPP", "LLMC_ENGINE_LLMCOMPRESSOR")
SPECIALS = ("<|begin|>", "<|end|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def no_engines() -> Iterator[None]:
    """Runtimes in environments of their own are for `tests/engines`; elsewhere they would make minutes of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ENGINES:
            patch.setenv(name, "none")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """What is on a disk for good is for `test_files.py`, which looks at the calls; elsewhere it only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_languages() -> Iterator[None]:
    """Telling languages takes a second of every run; `languages` gives it to the tests that are about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "py3langid", None)  # type: ignore[arg-type]
        yield


@pytest.fixture(scope="session", autouse=True)
def short_continuations() -> Iterator[dict[str, int]]:
    """Greedy continuations for readers are a third of a tiny run; `whole_continuations` is for tests about them."""
    from compressor.measure import continuations

    whole = {name: getattr(continuations, name) for name in ("PROMPTS", "TOKENS")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuations, "PROMPTS", 1)
        patch.setattr(continuations, "TOKENS", 4)
        yield whole


@pytest.fixture
def whole_continuations(short_continuations: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuations as users get them."""
    for name, value in short_continuations.items():
        monkeypatch.setattr(f"compressor.measure.continuations.{name}", value)


@pytest.fixture
def languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """py3langid, where it is installed."""
    monkeypatch.delitem(sys.modules, "py3langid")
    pytest.importorskip("py3langid", reason="py3langid is not installed")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """One token a byte, then `<|begin|>` (256), `<|end|>` (257) and `<|pad|>` (258); with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIALS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad)
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def llmc_until() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line as a process, and return when it stands still before the nth call of a method."""
    script, processes = Path(__file__).with_name("standing_still.py"), []

    def start(method: str, number: int, *words: Any) -> subprocess.Popen[str]:
        command = [sys.executable, script, method, str(number), *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        if not any("standing still" in line for line in process.stdout):
            pytest.fail(f"It ended before that: {process.communicate()[1]}")
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with files that are called as modules that interpreters import; the test fails if one of them ran."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for module in ("csv", "json", "random", "runpy", "socket", "torch", "numpy", "accelerate"):
        (folder / f"{module}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit('hostile')\n")
    yield folder
    assert not (folder / "ran").exists(), "a module of the current folder ran"


@pytest.fixture
def llmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command line does, and undone

    def run(*words: Any) -> tuple[int, str, str]:
        from compressor.cli import main

        with _in_this_process(), pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return run


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Undo what the command line does to its process, and let through what pytest raises in it, such as a time-out."""
    from compressor import cli
    from compressor.interrupted import interrupted

    explain, handlers = cli.explain, {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def told(error: BaseException, target: str | None = None) -> int:
        if isinstance(error, (pytest.fail.Exception, pytest.skip.Exception)):
            raise error
        return explain(error, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "explain", told)
        try:
            yield
        finally:
            interrupted.clear()
            for kind, handler in handlers.items():
                signal.signal(kind, handler)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Callable[..., Path]:
    """`tiny_model`, but equal arguments give the same folder: to be read only."""
    made: dict[str, Path] = {}

    def make(family: str, tied: bool = True, **overrides: Any) -> Path:
        key = repr((family, tied, sorted(overrides.items())))
        if key not in made:
            made[key] = _make_model(tmp_path_factory.mktemp(family) / "model", family, tied, overrides)
            byte_tokenizer.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_models: Callable[..., Path]) -> Callable[..., Path]:
    """The factory described at the top of this file."""

    def make(family: str, tied: bool = True, **overrides: Any) -> Path:
        return shutil.copytree(tiny_models(family, tied, **overrides), tmp_path_factory.mktemp(family) / "model")

    return make


@pytest.fixture
def adapter_of(tmp_path: Path) -> Callable[..., Path]:
    """A factory: a PEFT adapter of this configuration for a model folder, its tensors drawn at random.

    `adapter_of(root, config, name="lora", dtype=torch.float32, seed=0) -> Path`.
    """

    def make(root: Path, config: Any, name: str = "lora", dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32), config)
            for key, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" in key:
                    parameter.data *= torch.rand_like(parameter) + 0.5
                elif parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model.to(dtype).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def _make_model(root: Path, family: str, tied: bool, overrides: dict[str, Any]) -> Path:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = TINY_CONFIG | OWN_CONFIG.get(family, {}) | {"tie_word_embeddings": tied} | overrides
    config = CONFIG_MAPPING[family](**{key: value for key, value in values.items() if value is not None})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _spread_out(model)
    model.save_pretrained(root)
    return root


def _spread_out(model: torch.nn.Module) -> None:
    """Make norms and biases, which start as ones and zeros, matter; and logits wide enough to have a clear winner."""
    for name, parameter in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            parameter.data.uniform_(0.5, 1.5)
        else:
            parameter.data.normal_(std=0.1)
