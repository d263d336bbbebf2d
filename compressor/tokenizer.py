"""Opens the tokenizer of a model folder, offline."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError, panics_told
from compressor.inside import check_links
from compressor.json_file import read_object

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint

# Any one of these makes a tokenizer; without them transformers invents an empty one.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
# Keys of tokenizer_config.json for tokens that stand for something other than text.
MEDIA_TOKENS = ("image_token", "boi_token", "eoi_token", "audio_token", "video_token")


def load_tokenizer(root: Path, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer of a model folder.

    Raises:
        InputError: the folder has none, it is damaged, it lies elsewhere, or it needs code of its own and that is not
            trusted.
    """
    root = Path(root)
    if not any((root / name).is_file() for name in TOKENIZER_FILES) and not tokenizer_code(root):
        raise InputError(f"{root} has no tokenizer ({TOKENIZER_FILES[0]} or {TOKENIZER_FILES[1]}).")
    check_links(root)
    check_tokenizer_code(root, trust_remote_code)
    from transformers import AutoTokenizer

    try:
        with panics_told():
            opened = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=trust_remote_code)
            opened("a", verbose=False)  # settings that are nonsense are met only here
            return opened
    except Exception as error:  # tokenizer files fail in many ways, in several packages
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"The tokenizer of {root} cannot be opened ({reason}).") from error


def tokenizer_of(checkpoint: Checkpoint, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer of a checkpoint, which an adapter may have brought.

    Raises:
        InputError: as `load_tokenizer`.
    """
    from compressor.writer import copy_files

    files = checkpoint.companions
    if all(path == checkpoint.root / name for name, path in files.items()):
        return load_tokenizer(checkpoint.root, trust_remote_code)
    with TemporaryDirectory() as folder:
        copy_files({**files, "config.json": checkpoint.root / "config.json"}, Path(folder))
        return load_tokenizer(Path(folder), trust_remote_code)


def check_tokenizer_code(root: Path, trust_remote_code: bool) -> None:
    """Refuse a tokenizer that runs code of the model folder, unless that is trusted.

    Raises:
        InputError: the code is needed and not trusted.
    """
    code = tokenizer_code(root)
    if code and not trust_remote_code:
        raise InputError(
            f"The tokenizer of {root} runs code of its own ({code}).",
            "Pass --trust-remote-code if you trust its source, or save it as a tokenizer.json.",
        )


def tokenizer_code(root: Path) -> str | None:
    """The class in the folder's own code that its tokenizer needs; None when tokenizer.json makes it needless."""
    path = root / "tokenizer_config.json"
    if not path.is_file() or (root / "tokenizer.json").is_file():
        return None
    automatic = read_object(path).get("auto_map", {})
    classes = automatic.get("AutoTokenizer") if isinstance(automatic, dict) else automatic
    named = classes if isinstance(classes, list) else [classes]
    return next((name for name in named if name), None)


def default_template(tokenizer: Any) -> str | None:
    """The one chat template of a tokenizer, or the one that is called `default` of several; None where it has none.

    Raises:
        InputError: it has several, and none of this name.
    """
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return template or None
    if "default" not in template:
        raise InputError(
            f"The tokenizer has chat templates called {', '.join(template)}, and none called default.",
            "This target takes one; name it default, or leave out the others.",
        )
    return str(template["default"])


def template_notes(tokenizer: Any) -> list[str]:
    """What the ledger says where only one of several chat templates is written."""
    template = tokenizer.chat_template
    if not isinstance(template, dict) or len(template) < 2:
        return []
    return [f"of the chat templates {', '.join(template)} the runtime takes default alone"]


def encode_once(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text with the special ones around it; a text that begins with its first token gets no second one."""
    tokens = list(tokenizer(text, verbose=False)["input_ids"])
    first = tokenizer.bos_token_id
    return tokens[1:] if first is not None and tokens[:2] == [first, first] else tokens


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """See that the model's table has a row for every token that text can have; those for images never occur.

    Raises:
        InputError: it has not.
    """
    images = {value for key, value in tokenizer.init_kwargs.items() if key in MEDIA_TOKENS}
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows and token not in images}
    if beyond:
        first = min(beyond)
        others = f", and {len(beyond) - 1} more tokens have none" if len(beyond) > 1 else ""
        raise InputError(
            f"The tokenizer's token {beyond[first]!r} ({first}) has no row in the model's table of {rows}{others}.",
            "Save the model after resize_token_embeddings(len(tokenizer)), or take the tokens away.",
        )
