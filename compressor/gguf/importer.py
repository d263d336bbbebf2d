"""Turns a GGUF file into an ordinary model folder, one block in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from compressor.architecture import resolve
from compressor.checkpoint import Checkpoint
from compressor.convert import DEQUANTIZED, Check, Outline, converted_before, unchecked, write_converted
from compressor.errors import InputError
from compressor.files import digest_file, write_json
from compressor.gguf.blocks import BITS
from compressor.gguf.config import build_config, end_ids, special_ids
from compressor.gguf.container import GgufFile
from compressor.gguf.tokenizer import build_tokenizer
from compressor.gguf.weights import Reading, check_tensors
from compressor.pass_ import Progress

NAMED = 3  # weights of one kind that the ledger lists
# Differs between tokenizers that split digits, spaces, contractions or scripts differently.
PROBE = "It's 1234567.89 — don't  split\n\n\tHELLO WORLD'S naïve Größe 你好，世界 नमस्ते 🙂🚀 x=f(y[0])//2"


def import_gguf(
    path: Path, out: Path, progress: Progress, dequantize: bool = False, check: Check = unchecked
) -> tuple[Checkpoint, str]:
    """Turn a GGUF file into the new folder `out`, with its tokenizer and generation defaults.

    Linears in blocks of Q4_0 and Q8_0 keep their integers and scales; whatever else is quantized is dequantized.

    Args:
        dequantize: these too.

    Returns:
        The checkpoint, and a sentence that says what was done.

    Raises:
        InputError: the file is truncated, its architecture or its tokenizer is not known, or `out` holds
            something else.
    """
    file = GgufFile.open(path)
    config = build_config(file)
    architecture = resolve(config)
    check_tensors(file, architecture)
    reading = Reading.of(file, architecture, dequantize)
    check(Outline(architecture, {name.removesuffix(".weight"): scheme for name, scheme in reading.schemes.items()}))
    config["dtype"] = str(reading.dtype).removeprefix("torch.")
    sentence = _sentence(reading, dequantize)
    provenance = {"import": "gguf", "file": path.name, "sha256": digest_file(path), "integers": len(reading.schemes)}
    if found := converted_before(out, provenance):
        return found, sentence
    tokenizer = build_tokenizer(file)

    def write_companions(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        _check_tokenizer(folder, tokenizer)
        write_json(folder / "generation_config.json", special_ids(file) | {"eos_token_id": end_ids(file)})

    return write_converted(
        out, config, reading.blocks(progress), provenance, write_companions, dtype=reading.dtype
    ), sentence


def _sentence(reading: Reading, dequantize: bool) -> str:
    """What was done, for the ledger."""
    stored, dtype = f"GGUF {_kind(reading.file)} ({reading.file.path.name})", str(reading.dtype).removeprefix("torch.")
    if not reading.dequantized:
        done = f"converted from {stored}, float tensors as {dtype}"
    else:
        done = f"dequantized from {stored} to {dtype}"
    if not reading.schemes:
        return f"{done}, {DEQUANTIZED}" if dequantize and BITS.keys() & reading.dequantized.values() else done
    kinds = " and ".join(sorted({f"Q{scheme.bits}_0" for scheme in reading.schemes.values()}))
    file = reading.file.path.name
    kept = f"{len(reading.schemes)} weights of GGUF {kinds} ({file}) kept as its integers and scales"
    rest = [f"{len(names)} of {kind}: {_listed(names)}" for kind, names in _by_kind(reading.dequantized).items()]
    return f"{kept}; dequantized to {dtype}: {'; '.join(rest)}" if rest else kept


def _by_kind(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        found.setdefault(kind, []).append(name.removesuffix(".weight"))
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


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
