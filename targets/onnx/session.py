"""Runs an artifact on plain onnxruntime, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from compressor.measure.batches import greedy_rows, in_groups, padded_behind, padded_in_front
from compressor.target import Ended
from targets.onnx.file import load_graph
from targets.onnx.interface import LAST_TOKEN, session_entries

LOGITS_BYTES = 128 << 20  # of one chunk: what is held is twice this, onnxruntime's buffer and the caller's view
POSITIONS_PER_CHUNK = 512  # beyond this longer chunks are no faster, and attention scores grow with them
PROVIDERS = ["CPUExecutionProvider"]
ROUNDING_LEVEL = 4  # of MatMulNBits, at which it rounds activations to int8
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxSession:
    """One artifact opened in onnxruntime. Implements `compressor.target.BatchSession`.

    Args:
        accuracy_level: replaces the level of every MatMulNBits node; None leaves what was shipped.
        threads: of onnxruntime's pool; None is its default, one a core.
    """

    longest = None

    def __init__(self, root: Path, accuracy_level: int | None = None, threads: int | None = None) -> None:
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self._root, self._level, self._threads = root, accuracy_level, threads
        self._opened: dict[bool, onnxruntime.InferenceSession] = {}  # by whether it gives logits of every position
        self._cache: dict[str, onnxruntime.OrtValue] = {}
        self._mask = np.ones((0, 0), np.int64)

    def logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        return ((start, rows) for _, start, rows in self.logits_of([tokens]))

    def logits_of(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """See `BatchSession.logits_of`. Those that fit into one chunk go together: GroupQueryAttention takes several
        positions behind a cache of one row only.
        """
        vocabulary = self._session(every_position=True).get_outputs()[0].shape[-1]
        most = max(1, LOGITS_BYTES // (4 * vocabulary))

        def fits(count: int, _: int, longest: int) -> bool:
            return count * longest <= most and longest <= POSITIONS_PER_CHUNK

        for numbers in in_groups([len(text) for text in texts], fits):
            group = [texts[number] for number in numbers]
            for start, logits in self._chunks(padded_behind(group), min(most, POSITIONS_PER_CHUNK)):
                for number, text, rows in zip(numbers, group, logits, strict=True):
                    yield number, start, rows[: len(text) - start].astype(np.float32, copy=False)

    def _chunks(self, tokens: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """First position and logits [batch, at most `size`, vocab_size] of tokens [batch, length]."""
        session = self._session(every_position=True)
        cache = empty_cache(session, len(tokens))
        for start in range(0, tokens.shape[1], size):
            chunk = tokens[:, start : start + size]
            mask = np.ones((len(tokens), start + chunk.shape[1]), np.int64)  # causality hides what stands behind
            logits, cache = run(session, chunk, mask, cache)
            yield start, logits

    def generate(self, prompts: Sequence[np.ndarray], limit: int, ended: Ended) -> list[list[int]]:
        tokens, self._mask = padded_in_front(prompts)
        self._cache = empty_cache(self._session(every_position=False), len(prompts))
        first = self._last_logits(tokens).argmax(-1)
        return greedy_rows(first, lambda last: self._append(last[:, None]).argmax(-1), limit, ended)

    def prefill(self, tokens: np.ndarray, limit: int | None = None) -> int:
        self._mask = np.ones_like(tokens, np.int64)
        self._cache = empty_cache(self._session(every_position=False), len(tokens))
        return int(self._last_logits(tokens)[0].argmax())

    def decode(self, token: int) -> int:
        return int(self._append(np.full((len(self._mask), 1), token, np.int64))[0].argmax())

    def close(self) -> None:
        self._cache, self._opened = {}, {}

    def _append(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [batch, vocab_size] behind one more token of every row, int64 [batch, 1]."""
        self._mask = np.concatenate([self._mask, np.ones_like(tokens)], axis=1)
        return self._last_logits(tokens)

    def _last_logits(self, tokens: np.ndarray) -> np.ndarray:
        logits, self._cache = run(self._session(every_position=False), tokens, self._mask, self._cache)
        return logits[:, -1]

    def _session(self, every_position: bool) -> onnxruntime.InferenceSession:
        """The session with this graph, opened when first asked for; the other one is closed."""
        if every_position not in self._opened:
            self._opened = {}  # each session holds a prepacked copy of the weights
            changed = every_position or self._level is not None
            self._opened = {every_position: self._patched(every_position) if changed else self._shipped()}
        return self._opened[every_position]

    def _shipped(self) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self._root / "model.onnx", self._options(), PROVIDERS)

    def _patched(self, every_position: bool) -> onnxruntime.InferenceSession:
        """The shipped graph with changes made in memory; the weights stay in their file."""
        model = load_graph(self._root)
        if self._level is not None:
            set_accuracy_level(model, self._level)
        if every_position:
            keep_every_position(model)
        options = self._options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._root))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, PROVIDERS)

    @cached_property
    def _entries(self) -> dict[str, str]:
        return session_entries(load_graph(self._root).graph)

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        # Of products with dequantized weights, which become MatMulNBits: no rounding of activations.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        return options


def run(
    session: onnxruntime.InferenceSession, tokens: np.ndarray, mask: np.ndarray, cache: dict[str, onnxruntime.OrtValue]
) -> tuple[np.ndarray, dict[str, onnxruntime.OrtValue]]:
    """Process tokens [batch, current] under mask [batch, total]: (logits, the cache that now covers them)."""
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    feeds = {"input_ids": value(np.ascontiguousarray(tokens, np.int64)), "attention_mask": value(mask), **cache}
    names = [output.name for output in session.get_outputs()]
    # Values stay inside onnxruntime: the cache of one step is handed to the next without a copy.
    logits, *present = session.run_with_ort_values(names, feeds)
    past = (name.replace("present", "past_key_values") for name in names[1:])
    return logits.numpy(), dict(zip(past, present, strict=True))


def empty_cache(session: onnxruntime.InferenceSession, batch: int) -> dict[str, onnxruntime.OrtValue]:
    """The cache before the first token: keys and values [batch, kv_heads, 0, head_dim] of every layer."""
    entries = [entry for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
    return {entry.name: _no_tokens(batch, entry) for entry in entries}


def _no_tokens(batch: int, entry: Any) -> onnxruntime.OrtValue:
    _, heads, _, width = entry.shape
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, width), DTYPES[entry.type]))


def set_accuracy_level(model: onnx.ModelProto, level: int) -> None:
    """Give every MatMulNBits node this accuracy level."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level


def rounds_activations(root: Path) -> bool:
    """Whether a matrix of the artifact's graph computes with activations in int8, at the accuracy level it has."""
    nodes = load_graph(root).graph.node
    levels = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "accuracy_level"]
    return ROUNDING_LEVEL in levels


def keep_every_position(model: onnx.ModelProto) -> None:
    """Make the graph give logits [batch, current, vocab_size]: take out the node that keeps the last token."""
    selection = next(node for node in model.graph.node if node.name == LAST_TOKEN)
    for node in model.graph.node:
        if selection.output[0] in node.input:
            node.input[list(node.input).index(selection.output[0])] = selection.input[0]
    model.graph.node.remove(selection)
    logits = next(output for output in model.graph.output if output.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "current"
