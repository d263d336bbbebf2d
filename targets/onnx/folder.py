"""Base of targets whose artifact is a folder with the decoder as an ONNX graph, which onnxruntime reads and opens."""

from __future__ import annotations

import json
import shlex
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint, Weight
from compressor.encoding import Encode
from compressor.errors import MissingExtra
from compressor.files import write_json
from compressor.interpreter import SAFE_PATH
from compressor.options import option
from compressor.pass_ import Progress
from compressor.quantized import QuantizedWeight
from compressor.requirements import unfit
from compressor.target import Artifact, Session, StoredTensor, Target
from compressor.tokenizer import load_tokenizer, template_notes
from targets.casting import served_config

if TYPE_CHECKING:
    from onnx import ModelProto

    from targets.onnx.weights import DataFile

GRAPH = "model.onnx"
INSTALL = "pip install 'llmc-compiler[onnx]'"
# How a line of Python opens a tokenizer. genai's adds special tokens only if it is asked.
_TOKENIZERS = {
    "genai": "tokenizer = og.Tokenizer(model); tokenizer.update_options(add_special_tokens=True)",
    "transformers": "from transformers import AutoTokenizer; tokenizer = AutoTokenizer.from_pretrained(PATH)",
}
# Asks glibc for pages of 2 MiB; other C libraries do not look at it. A token reads all weights, and finding them in
# pages of 4 KiB is up to a quarter of its time.
HUGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class OnnxFolder(Target):
    """Writes and reads the folder; subclasses build the graph, and read its weights back."""

    shares_cache: ClassVar[bool] = True  # the graph can write the new part of the cache beside the old one

    @property
    @abstractmethod
    def compute(self) -> torch.dtype:
        """The dtype of activations, cache and unquantized parameters."""

    @abstractmethod
    def build(self, checkpoint: Checkpoint, data: DataFile, progress: Progress) -> tuple[ModelProto, list[str]]:
        """The graph, whose weights go into `data`, and notes for the ledger."""

    def why_not_made(self) -> str | None:
        missing = _missing_package()
        return None if missing is None else f"ONNX files need {missing}, which is missing; {INSTALL}."

    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        require_packages()
        import onnx

        from targets.onnx import genai, tokenizer, weights
        from targets.onnx.interface import session_entries
        from targets.onnx.special_tokens import SpecialTokens

        with closing(weights.DataFile(out)) as data:
            model, notes = self.build(checkpoint, data, progress)
        model.graph.initializer.extend(data.initializers)
        onnx.save(model, out / GRAPH)
        cache, entries = genai.Cache(self.compute, self.shares_cache), session_entries(model.graph)
        own = load_tokenizer(checkpoint.root)
        tokens = SpecialTokens.of(checkpoint.root, own, checkpoint.architecture.vocab_size)
        genai.write_config(checkpoint.root, checkpoint.architecture, tokens, out, cache, entries)
        write_json(out / "config.json", served_config(checkpoint, self.compute))
        tokenizer.write_tokenizer(checkpoint.root, own, out)
        return [*notes, *tokens.notes, *template_notes(own)]

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        if not isinstance(weight, QuantizedWeight):
            return weight.to(self.compute)
        return weight if weight.branch is None else weight.beside(weight.branch.to(self.compute))

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        require_packages()
        from targets.onnx.rules import external_tensors

        return external_tensors(artifact.root)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        require_packages()
        from targets.onnx.rules import check_folder

        return check_folder(artifact.root)

    def why_not_run(self) -> str | None:
        missing = _missing_package()
        return unfit("onnxruntime") if missing is None else f"{missing} is not installed ({INSTALL})"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open on plain onnxruntime.

        Args:
            options: `accuracy_level` and `threads`, see `targets.onnx.session.OnnxSession`.
        """
        if self.why_not_run() is not None:
            return super().open(artifact)
        from targets.onnx.session import OnnxSession

        return OnnxSession(artifact.root, **options)


@dataclass(frozen=True)
class GenaiFolder(OnnxFolder):
    """A folder that onnxruntime-genai drives."""

    tokenizer: Literal["genai", "transformers"] = option(
        "genai",
        "who makes tokens of text where it is served; genai's own is refused for a model whose tokens it gets wrong",
    )

    def tokenizer_problems(self, root: Path, vocab_size: int) -> list[str]:
        from targets.onnx import tokenizer

        if self.tokenizer == "transformers":
            return []
        return tokenizer.problems(root, f"{self.name}:tokenizer=transformers serves it with the model's own.")

    def encoder(self, artifact: Artifact) -> Encode | None:
        from targets.onnx import tokenizer

        if self.tokenizer == "transformers":
            return super().encoder(artifact)
        if not tokenizer.is_here():
            raise MissingExtra(tokenizer.NAME, "onnx", "Its tokenizer")
        return tokenizer.open_tokenizer(artifact.root)

    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        """The line that generates with onnxruntime-genai."""
        opened = _TOKENIZERS[self.tokenizer].replace("PATH", json.dumps(path))
        settings = [HUGE_PAGES, *(f"{name}={value}" for name, value in SAFE_PATH.items())]
        return f"env {' '.join(settings)} python -c " + shlex.quote(
            "import onnxruntime_genai as og; "
            f"model = og.Model({json.dumps(path)}); {opened}; "
            "parameters = og.GeneratorParams(model); parameters.set_search_options(max_length=100); "
            "generator = og.Generator(model, parameters); "
            'generator.append_tokens(tokenizer.encode("Once upon a time")); '
            "any(generator.generate_next_token() for _ in iter(generator.is_done, True)); "
            "print(tokenizer.decode(generator.get_sequence(0)))"
        )


def require_packages() -> None:
    """Refuse to go on without the packages that ONNX files need."""
    missing = _missing_package()
    if missing is not None:
        raise MissingExtra(missing, "onnx", "An ONNX Runtime target")


def _missing_package() -> str | None:
    """The first package that ONNX files need and that is not installed."""
    return next((package for package in ("onnx", "onnxruntime") if find_spec(package) is None), None)
