"""Turns a GGUF file into an ordinary model folder, one block in memory at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compressor.architecture import resolve
from compressor.checkpoint import Checkpoint
from compressor.convert import converted_before, write_converted
from compressor.errors import InputError
from compressor.files import digest_file, write_json
from compressor.gguf.config import build_config, end_ids, special_ids
from compressor.gguf.container import GgufFile
from compressor.gguf.tokenizer import build_tokenizer
from compressor.gguf.weights import check_tensors, read_blocks
from compressor.pass_ import Progress

# Differs between tokenizers that split digits, spaces, contractions or scripts differently.
PROBE = "It's 1234567.89 — don't  split\n\n\tHELLO WORLD'S naïve Größe 你好，世界 नमस्ते 🙂🚀 x=f(y[0])//2"


def import_gguf(path: Path, out: Path, progress: Progress) -> tuple[Checkpoint, str]:
    """Dequantize a GGUF file to float32 into the new folder `out`, with its tokenizer and generation defaults.

    Returns:
        The checkpoint, and a sentence that says what was done.

    Raises:
        InputError: the file is truncated, its architecture or its tokenizer is not known, or `out` holds
            something else.
    """
    file = GgufFile.open(path)
    sentence = f"dequantized from GGUF {_kind(file)} ({path.name}) to float32"
    provenance = {"import": "gguf", "file": path.name, "sha256": digest_file(path)}
    if found := converted_before(out, provenance):
        return found, sentence
    config = build_config(file)
    architecture = resolve(config)
    check_tensors(file, architecture)
    tokenizer = build_tokenizer(file)

    def write_companions(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        _check_tokenizer(folder, tokenizer)
        write_json(folder / "generation_config.json", special_ids(file) | {"eos_token_id": end_ids(file)})

    blocks = read_blocks(file, architecture, progress)
    return write_converted(out, config, blocks, provenance, write_companions), sentence


def _kind(file: GgufFile) -> str:
    """The type that most weights have: what people call the file."""
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.kind] += tensor.nbytes
    matrices = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return max(matrices, key=lambda kind: sizes[kind])


def _check_tokenizer(folder: Path, tokenizer: object) -> None:
    """See that transformers reads back the tokenizer that was written: for some families it overrides parts."""
    from compressor.tokenizer import load_tokenizer

    if load_tokenizer(folder)(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:  # type: ignore[operator]
        raise InputError(
            "transformers reads the model's tokenizer otherwise than the GGUF file describes it.",
            "Start from the model's original folder.",
        )
