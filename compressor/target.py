"""What a target is: it says what it cannot take, lowers a checkpoint, reads its own artifact back, and runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from compressor.architecture import Architecture
from compressor.artifact import MANIFEST, Artifact  # noqa: F401 -- both are known as the target's
from compressor.checkpoint import Checkpoint, Weight
from compressor.encoding import Encode
from compressor.engine import Engine
from compressor.errors import RunError
from compressor.options import Configurable
from compressor.pass_ import Progress
from compressor.quantized import EXTENSIONS, Scheme
from compressor.shards import tensor_ranges


@dataclass(frozen=True)
class StoredTensor:
    """Which bytes of which file of an artifact a tensor takes, by the name that it has there."""

    file: str
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Tolerance:
    """How far apart logits of one artifact may be on two machines, in nats, and why they are apart at all."""

    logits: float
    reason: str


class Session(Protocol):
    """An artifact opened in its own runtime, batch size 1 unless stated. Used for quality and for latency."""

    runtime: str  # name and version, as the ledger shows it

    @property
    def longest(self) -> int | None:
        """Tokens of a text that it has room for, generated ones among them; None: it knows of no limit."""
        ...

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Logits of every position of one sequence, in chunks, so that a large vocabulary does not eat the memory.

        Args:
            tokens: int64 [length].

        Yields:
            (first position, float32 [positions, vocab_size]). A runtime that tells the likeliest tokens only gives
            their log-probabilities, that of the token which follows among them, and -inf for all others.
        """
        ...

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
        """Start anew with the prompt int64 [batch, length]; return the most likely next token of row 0.

        Args:
            limit: how many tokens will be asked for at most, this one among them; None: nobody knows yet. A runtime
                that goes on by itself stops there, and one that sets memory aside makes room for so many.
        """
        ...

    def decode(self, token: int) -> int:
        """Append `token` to every row and return the most likely next one of row 0, once every row has its own."""
        ...

    def close(self) -> None: ...


Ended = Callable[[list[int]], bool]  # whether a generation that has come so far is to end


@runtime_checkable
class BatchSession(Session, Protocol):
    """A session whose runtime takes several texts of any lengths at once. What it says of one is what it says of it
    alone, but for the rounding of sums that its kernels add up in another order.
    """

    def logits_of(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """As `logits`, of several sequences int64 [length] each.

        Yields:
            (number of the sequence, first position, float32 [positions, vocab_size]), those of a sequence in order.
        """
        ...

    def generate(self, prompts: Sequence[np.ndarray], limit: int, ended: Ended) -> list[list[int]]:
        """Greedy tokens behind each prompt int64 [length]: at most `limit`, or until `ended`."""
        ...


@dataclass(frozen=True)
class Variant:
    """One way to run an artifact that deserves a ledger row of its own."""

    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Rounding:
    """What a runtime rounds, beside what the weights' own schemes ask for, so that llmc's decoder can do the same.

    Attributes:
        dtype: of 16 bits, that everything between two operators is held in.
        block: inputs of quantized linears are rounded to eight bits, so many under a scale, or fewer where fewer
            weights share one.
    """

    dtype: str | None = None
    block: int | None = None

    def __str__(self) -> str:
        inputs = None if self.block is None else f"inputs to int8 in blocks of {self.block}"
        return "rounding " + " and ".join(filter(None, [self.dtype and f"to {self.dtype}", inputs]))


@dataclass(frozen=True)
class Runtime:
    """A program that runs an artifact.

    Attributes:
        why_not: the reason why it cannot be opened here, None where it can.
        label: of the variant, where the artifact can be run in several ways.
        rounding: what it rounds; None where nothing is known of it.
    """

    name: str
    why_not: str | None
    open: Callable[[], Session]
    tolerance: Tolerance
    label: str = ""
    rounding: Rounding | None = None

    def called(self, name: str) -> str:
        """A name that the runtime has, with that of the variant."""
        return ", ".join(filter(None, [name, self.label]))


class Target(Configurable, ABC):
    """One deployment format. Stateless; found by name through the entry-point group `llmc.targets`."""

    runtime: ClassVar[str]  # what people install to serve it
    engine: ClassVar[Engine | None] = None  # that `open` runs it in, a process that reads all files when it starts
    preset: ClassVar[tuple[str, ...]] = ()  # passes, as spelled on the command line, when the recipe names none
    holds_floats: ClassVar[bool] = False  # beside what its preset makes: a merged model is an artifact as it is
    baseline: ClassVar[str | None] = None  # target that holds the original model in the same runtime
    holds_cache_scales: ClassVar[bool] = False  # of an fp8 key-value cache
    holds_quantized_embedding: ClassVar[bool] = False
    holds: ClassVar[frozenset[str]] = frozenset()  # which of `EXTENSIONS` its artifacts say of a layer
    reader: ClassVar[str]  # who can read its artifacts back: not our writer
    rules: ClassVar[str | None] = None  # what `broken_rules` asks for; None where there are no rules

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Ways to run the artifact that deserve a row of their own; the last one is how it ships."""
        return (Variant("", {}),)

    def why_not_made(self) -> str | None:
        """None when artifacts can be written and read back here, else what is missing, as a sentence with a remedy."""
        return None

    @abstractmethod
    def problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        """Every reason why a model of this shape, quantized like this, cannot be lowered; each names a remedy."""

    def cache_problems(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> list[str]:
        """Every reason why the scales of an fp8 key-value cache cannot be lowered beside layers of these schemes."""
        if self.holds_cache_scales:
            return []
        return ["It holds no scales of an fp8 key-value cache; kv_cache=false works, or the target hf."]

    def embedding_problems(self, architecture: Architecture, scheme: Scheme) -> list[str]:
        """The same of an embedding quantized like this; asked of targets with `holds_quantized_embedding` only."""
        return []

    def extension_problems(self, schemes: Mapping[str, Scheme]) -> list[str]:
        """What layers have beside their quantized matrix that the target has no place for."""
        problems = []
        for extension, called in EXTENSIONS.items():
            layers = [name for name, scheme in schemes.items() if extension in scheme.extensions]
            if layers and extension not in self.holds:
                others = len(layers) - 1
                have = f" and {others} more layer{'s' if others > 1 else ''} have" if others else " has"
                remedy = _remedy(extension, schemes[layers[0]])
                problems.append(f"{layers[0]}{have} {called}, which this target has no place for{remedy}.")
        return problems

    def value_problems(self, checkpoint: Checkpoint, floats: Sequence[str]) -> Iterable[str]:
        """Why numbers cannot be lowered, as far as headers or one streaming read tell; asked before the first pass.

        Args:
            checkpoint: its quantized layers stay as they are.
            floats: parameters that stay unquantized and as they are; others are not known yet.
        """
        return []

    @abstractmethod
    def lower(self, checkpoint: Checkpoint, out: Path, progress: Progress) -> list[str]:
        """Write the artifact's files into the empty folder `out`, one block in memory at a time.

        Returns:
            Notes for the ledger: whatever was not mere repacking, such as a cast of unquantized tensors.
        """

    @abstractmethod
    def read_back(self, artifact: Artifact) -> Iterator[tuple[str, Weight]]:
        """Every weight of the artifact under its checkpoint name (`model.layers.0.mlp.up_proj.weight`).

        Reads the files through `reader`, code that shares nothing with `lower`.
        """

    def reader_of(self, schemes: Mapping[str, Scheme]) -> str:
        """Who reads back the artifact of a checkpoint with these schemes."""
        return self.reader

    def expected(self, name: str, weight: Weight, architecture: Architecture) -> Weight:
        """What `read_back` must give for the `weight` of a checkpoint of this shape: itself, or its declared cast."""
        return weight

    def tokenizer_problems(self, root: Path, vocab_size: int) -> list[str]:
        """Why text would reach the runtime as other tokens than the model's; asked before the first pass.

        Args:
            root: the model's folder.
            vocab_size: rows of its table.
        """
        return []

    def encoder(self, artifact: Artifact) -> Encode | None:
        """Text to tokens as the artifact's runtime does it: by transformers, unless it has a tokenizer of its own.

        None where that cannot be asked.

        Raises:
            InputError: the artifact's tokenizer cannot be opened.
            MissingExtra: the runtime is not installed.
        """
        from compressor.tokenizer import load_tokenizer, tokenizer_code

        if tokenizer_code(artifact.root):
            return None
        tokenizer = load_tokenizer(artifact.root)
        return lambda text: tokenizer(text, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    def stored_tensors(self, artifact: Artifact) -> Iterator[StoredTensor]:
        """Where each tensor lies, so that damage of a file can be located: here, in safetensors and GGUF files."""
        for file in artifact.file_names:
            ranges = _RANGES.get(PurePath(file).suffix)
            if ranges is not None:
                for name, (start, end) in ranges(artifact.root / file).items():
                    yield StoredTensor(file, name, start, end)

    def broken_rules(self, artifact: Artifact) -> list[str]:
        """Every one of the target's `rules` of structure that the artifact breaks, as a sentence each."""
        return []

    def tolerance(self, artifact: Artifact, **options: Any) -> Tolerance:
        """How far apart the artifact's logits may be on two machines, when `open` runs it with these options."""
        return Tolerance(1e-3, "float32 sums are taken in another order")

    def rounding(self, artifact: Artifact, **options: Any) -> Rounding | None:
        """What the runtime rounds while it computes, when `open` runs the artifact with these options."""
        return None

    def why_not_run(self) -> str | None:
        """None when the runtime can be opened here, else the reason it cannot."""
        return f"llmc does not run {self.runtime}"

    def open(self, artifact: Artifact, **options: Any) -> Session:
        """Open the artifact in its runtime.

        Args:
            options: those of a variant; and `batch` and `length`, how many texts of how many tokens will run at once,
                for runtimes that set memory aside when they start.

        Raises:
            RunError: it cannot be opened here, for the reason that `why_not_run` gives.
        """
        raise RunError(f"{self.name} cannot be run here: {self.why_not_run()}.")

    def runtimes(self, artifact: Artifact) -> tuple[Runtime, ...]:
        """Every way to run the artifact that is to be held against what its weights mean."""
        return tuple(
            Runtime(
                self.runtime,
                self.why_not_run(),
                partial(self.open, artifact, **variant.options),
                self.tolerance(artifact, **variant.options),
                variant.label,
                self.rounding(artifact, **variant.options),
            )
            for variant in self.variants
        )

    @abstractmethod
    def run_command(self, path: str, config: Mapping[str, Any]) -> str:
        """The exact command line that serves the artifact.

        Args:
            path: of the artifact, as the command shall have it.
            config: the artifact's config.json, or the checkpoint's where the artifact has none.
        """


def _remedy(extension: str, scheme: Scheme) -> str:
    """What to do where a target has no place for what layers have beside their matrix, as the end of a sentence."""
    if extension != "rank":
        return ""
    if scheme.type == "low-rank":
        return "; low-rank:form=dense makes ordinary weights of them"
    return "; onnx-int4 and onnx-int8 have one, and so does every target without low-rank-correction"


def _gguf_ranges(path: Path) -> dict[str, tuple[int, int]]:
    from compressor.gguf.container import GgufFile

    tensors = GgufFile.open(path).tensors.values()
    return {tensor.name: (tensor.offset, tensor.offset + tensor.nbytes) for tensor in tensors}


_RANGES = {".safetensors": tensor_ranges, ".gguf": _gguf_ranges}  # first byte of each tensor, and the one behind it
