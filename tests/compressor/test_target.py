"""What every target inherits: where tensors lie in the files of an artifact."""

import json
from types import SimpleNamespace

import numpy as np
from safetensors.torch import load_file

from compressor.target import Artifact, Target


def stored(root):
    return list(Target.stored_tensors(SimpleNamespace(), Artifact(root, "any")))


def bytes_of(root, tensor):
    return (root / tensor.file).read_bytes()[tensor.start : tensor.end]


def test_tensors_of_safetensors_files_are_where_the_library_reads_them(tiny_model):
    root = tiny_model("llama")
    tensors = load_file(root / "model.safetensors")
    found = {tensor.name: bytes_of(root, tensor) for tensor in stored(root)}
    assert found == {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_tensors_of_gguf_files_are_where_the_library_reads_them(tiny_model, gguf_of, tmp_path):
    from gguf import GGUFReader

    path = gguf_of(tiny_model("llama"), "Q8_0")
    found = {tensor.name: bytes_of(path.parent, tensor) for tensor in stored(path.parent)}
    assert found == {tensor.name: np.asarray(tensor.data).tobytes() for tensor in GGUFReader(path).tensors}


def test_other_files_hold_no_tensors(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert stored(tmp_path) == []
