"""Text to tokens as onnxruntime-genai does it, which has a tokenizer of its own for the same files."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.encoding import Encode, all_texts, differences
from compressor.errors import InputError, first_line
from compressor.files import write_json
from compressor.json_file import read_object
from compressor.tokenizer import default_template, load_tokenizer
from compressor.writer import copy_companions

PACKAGE, NAME = "onnxruntime_genai", "onnxruntime-genai"
FILE = "tokenizer.json"  # what it reads; transformers writes it for every fast tokenizer
# A configuration of a model that is never opened.
NO_MODEL = {
    "model": {"type": "llama", "context_length": 1, "vocab_size": 1, "decoder": {"filename": "none.onnx"}},
    "search": {},
}


def is_here() -> bool:
    """Whether onnxruntime-genai is installed."""
    return find_spec(PACKAGE) is not None


def write_tokenizer(root: Path, tokenizer: Any, out: Path) -> None:
    """Put the tokenizer of the model folder `root` into `out`: its files, and tokenizer.json where it has none.

    Raises:
        InputError: there is no tokenizer.json for such a tokenizer.
    """
    copy_companions(root, out)
    if not (out / FILE).is_file():
        tokenizer.save_pretrained(out)
    _keep_one_template(tokenizer, out / "tokenizer_config.json")
    if not (out / FILE).is_file():
        raise InputError(
            f"{NAME} reads {FILE}, and transformers writes none for a {type(tokenizer).__name__}.",
            "Targets that transformers reads the tokenizer for, such as vllm-int4 or hf, work.",
        )


def _keep_one_template(tokenizer: Any, path: Path) -> None:
    """Of several chat templates with names, keep the default one: onnxruntime-genai opens no others."""
    template = default_template(tokenizer)
    values = read_object(path) if path.is_file() else {}
    if isinstance(values.get("chat_template"), list):
        write_json(path, values | {"chat_template": template})


def open_tokenizer(folder: Path) -> Encode:
    """onnxruntime-genai's own tokenizer of a folder with genai_config.json.

    Raises:
        InputError: it cannot open it.
    """
    import onnxruntime_genai

    try:
        tokenizer = onnxruntime_genai.Tokenizer(str(folder))
        tokenizer.update_options(add_special_tokens=True)  # it adds none by itself
    except Exception as error:  # the package raises nothing more specific
        raise InputError(f"{NAME} cannot open the tokenizer ({first_line(error)}).") from error
    return lambda text: tokenizer.encode(text).tolist()


def problems(root: Path, remedy: str) -> list[str]:
    """Why text would reach a model as other tokens than those of the tokenizer in its folder `root`."""
    tokenizer = load_tokenizer(root)
    with tempfile.TemporaryDirectory(prefix="llmc-") as name:
        write_tokenizer(root, tokenizer, Path(name))
        write_json(Path(name) / "genai_config.json", NO_MODEL)
        found = differences(open_tokenizer(Path(name)), tokenizer, all_texts(tokenizer)) if is_here() else []
    if not found:
        return []
    return [f"{NAME}'s own tokenizer differs from the model's: {found[0]}; {remedy}"]
