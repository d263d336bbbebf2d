"""`llmc verify` finds one changed byte anywhere in an artifact of any kind, and says in which file and tensor it is."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

import compressor.audit
from compressor.audit import audit
from compressor.ledger import StepRecord
from compressor.lowering import Lowering
from compressor.manifest import read_manifest
from compressor.quantized import Activations, Scheme
from compressor.registry import make_target, parse_spec
from compressor.target import MANIFEST
from targets.tensorrt_rtx.description import PACKAGE

W8A8 = Scheme(8, None, activations=Activations(8))
FP8 = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
NVFP4 = Scheme(4, 16, type="float", activations=Activations(4, "float", dynamic=False))
KINDS = {
    "awq": Scheme(4, 32, symmetric=False),
    "gguf-q4_0": Scheme(4, 64),
    "gguf-q8_0": Scheme(8, 32),
    "gptq": Scheme(4, 32),
    "hf": Scheme(4, 32, symmetric=False),
    "hf-nf4": Scheme(4, 64, type="nf4", double_quant=True),
    "onnx-fp16": None,
    "onnx-fp32": None,
    "onnx-int4": Scheme(4, 32),
    "onnx-int8": Scheme(8, 32),
    "onnx-qdq-int4": Scheme(4, 64),
    "onnx-qdq-int8": Scheme(8, None),
    "trt-fp8": FP8,
    "trt-int4": Scheme(4, 64),
    "trt-int8": Scheme(8, None),
    "trt-nvfp4": NVFP4,
    "trtrtx-int4:sm=89,max_length=64": Scheme(4, 32),
    "trtrtx-int8:sm=89,max_length=64": Scheme(8, None),
    "vllm-fp8": FP8,
    "vllm-int4": Scheme(4, 32),
    "vllm-int8": W8A8,
    "vllm-nvfp4": NVFP4,
}
needs_builder = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="TensorRT-RTX is not installed: [trtrtx]")
ALL = [pytest.param(name, marks=needs_builder if name.startswith("trtrtx") else ()) for name in KINDS]
PLACES = 5  # of a file that are changed, its first and last byte among them
silent = lambda *_: None  # noqa: E731


@pytest.fixture
def artifact(tiny_model, quantize, made, tmp_path, tmp_path_factory):
    """A copy of the artifact of a target, to be damaged."""

    def make(name):
        if ("artifact", name) not in made:
            from compressor.checkpoint import Checkpoint

            root, scheme = tiny_model("llama"), KINDS[name]
            checkpoint = Checkpoint.open(root) if scheme is None else quantize(root, scheme)
            out = tmp_path_factory.mktemp("damage") / name
            target = make_target(*parse_spec(name))
            Lowering(target, checkpoint, silent, "it is not asked for").make(out, StepRecord(name))
            made["artifact", name] = out
        return shutil.copytree(made["artifact", name], tmp_path / "artifact")

    return make


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@pytest.mark.parametrize("name", ALL)
def test_a_changed_byte_is_found_in_its_file_and_tensor(artifact, monkeypatch, name):
    monkeypatch.setattr(compressor.audit, "_check_content", lambda *_: [])  # what files mean is not needed to find it
    root = artifact(name)
    assert audit(root, silent).findings == []
    manifest = read_manifest(root)
    located = 0
    for file, record in manifest.files.items():
        path, content = root / file, (root / file).read_bytes()
        tensors = {(one.start + one.end) // 2: tensor for tensor, one in manifest.tensors.get(file, {}).items()}
        edges = {place * (record.bytes - 1) // (PLACES - 1) for place in range(PLACES)}
        for place in sorted(edges | tensors.keys()):
            path.write_bytes(flipped(content, place))
            findings = audit(root, silent).findings
            assert [finding.file for finding in findings] == [file], (file, place)
            if place in tensors:
                assert findings[0].tensor == tensors[place]
                located += 1
        path.write_bytes(content)
    assert audit(root, silent).findings == []
    assert located >= 14  # every tensor; graphs stack those of q, k and v


@pytest.mark.parametrize("name", ALL)
def test_rules_and_weights_stand_damage_and_see_it(artifact, name):
    """A byte in the middle of the largest tensor: its file, and what was read back, are not as recorded."""
    root = artifact(name)
    checks = {check.name: check for check in audit(root, silent).checks}
    assert [name for name, check in checks.items() if check.findings] == []
    assert checks["structure"].checked == 1  # every target has rules
    assert checks["weights"].checked >= 20
    path = max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    tensor = max(read_manifest(root).tensors[path.name].values(), key=lambda one: one.end - one.start)
    content = path.read_bytes()
    path.write_bytes(flipped(content, (tensor.start + tensor.end) // 2))
    found = {check.name for check in audit(root, silent).checks if check.findings}
    assert {"files", "weights"} <= found
    path.write_bytes(content[: tensor.start])
    found = {check.name for check in audit(root, silent).checks if check.findings}
    assert {"files", "structure", "weights"} <= found


def test_a_changed_byte_of_the_manifest_is_found(artifact):
    root = artifact("gguf-q8_0")
    path, content = root / MANIFEST, (root / MANIFEST).read_bytes()
    for place in [*range(0, len(content), 29), len(content) - 1]:
        path.write_bytes(flipped(content, place))
        (check,) = audit(root, silent).checks
        assert [finding.file for finding in check.findings] == [MANIFEST], place


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_manifest_is_bad_input_to_inspect(artifact, llmc, place):
    root = artifact("trt-int8")
    content = (root / MANIFEST).read_bytes()
    (root / MANIFEST).write_bytes(flipped(content, place % len(content)))
    code, _, err = llmc("inspect", root)
    assert code == 2
    assert str(root / MANIFEST) in err
    assert llmc("verify", root)[0] == 1


def test_missing_and_unknown_files_are_named(artifact):
    root = artifact("trt-int4")
    (root / "hf_quant_config.json").unlink()
    (root / "more.bin").write_bytes(b"1")
    findings = next(check for check in audit(root, silent).checks if check.name == "files").findings
    assert [str(finding) for finding in findings] == [
        "hf_quant_config.json: is missing", "more.bin: is not in the manifest",
    ]  # fmt: skip
