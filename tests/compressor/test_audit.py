"""An artifact checked against its manifest: whole ones pass, and what is changed is found and located."""

import json
import os
import random
import shutil
from dataclasses import replace

import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

from compressor import audit as audits
from compressor.audit import audit, find_artifact
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MissingExtra, RunError
from compressor.files import digest_file
from compressor.ledger import StepRecord
from compressor.lowering import Lowering
from compressor.manifest import FileRecord, read_manifest
from compressor.pass_ import PassContext
from compressor.registry import make_target
from compressor.target import MANIFEST, Tolerance
from passes.rtn import RTN

TARGETS = ("hf", "onnx-int4", "trt-int4", "vllm-int4")
RUN_HERE = ("hf", "onnx-int4")
WEIGHTS = 20  # parameters of the tiny Llama
SHARD = "model.safetensors"
LAYER = "model.layers.1.mlp.up_proj"


def silent(what, done, total):
    pass


@pytest.fixture(scope="module")
def made():
    """What earlier tests made, by its name."""
    return {}


@pytest.fixture
def step(made, tiny_model, tmp_path_factory):
    if "step" not in made:
        out = tmp_path_factory.mktemp("steps") / "01-rtn"
        context = PassContext(out, {"pass": "rtn"}, None, 0, silent, [])
        made["step"] = RTN(group_size=64).apply(Checkpoint.open(tiny_model("llama")), context)
    return made["step"]


@pytest.fixture
def artifact(made, step, tmp_path_factory, tmp_path):
    """`artifact(target)`: a copy, for the test to damage, of the artifact that the pipeline makes."""

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "artifact"
            Lowering(make_target(name, {}), step, silent).make(made[name], StepRecord(name))
        return shutil.copytree(made[name], tmp_path / name)

    return make


@pytest.fixture
def files_only(monkeypatch):
    """Leave out what asks the target, for the tests that look at many bytes."""

    def unknown(name, options):
        raise InputError("not asked")

    monkeypatch.setattr(audits, "make_target", unknown)


def checks(root):
    return {check.name: check for check in audit(root, silent).checks}


def findings(root):
    return audit(root, silent).findings


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def stored_tensors(path):
    """Name to first and last byte of each tensor in a file, found without the code under test."""
    if path.suffix == ".data":
        graph = onnx.load(path.with_name("model.onnx"), load_external_data=False).graph
        places = {tensor.name: ExternalDataInfo(tensor) for tensor in graph.initializer if tensor.external_data}
        return {name: (place.offset, place.offset + place.length) for name, place in places.items()}
    if path.suffix != ".safetensors":
        return {}
    content = path.read_bytes()
    base = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:base])
    ranges = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (base + start, base + end) for name, (start, end) in ranges.items()}


# ---- artifacts that are whole


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_artifact_passes_every_check(artifact, target):
    root = artifact(target)
    verdict = audit(root, silent)
    assert verdict.findings == []
    assert verdict.plain()["intact"]
    found = {check.name: check for check in verdict.checks}
    assert list(found) == ["manifest", "files", "structure", "tokenizer", "weights", "generation"]
    assert found["files"].checked == len(list(root.iterdir())) - 1
    assert found["weights"].checked == WEIGHTS
    assert found["structure"].passed
    assert (found["tokenizer"].checked, found["tokenizer"].passed) == (13, "are read by the runtime as by transformers")
    generation = found["generation"]
    if target in RUN_HERE:
        assert (generation.checked, generation.remarks, generation.not_run) == (16, [], None)
    else:
        assert "none was recorded, since" in generation.not_run
    assert [name for name, check in found.items() if check.not_run] == ([] if target in RUN_HERE else ["generation"])


def test_the_checkpoint_is_not_needed(artifact, step, tmp_path):
    root = artifact("onnx-int4")
    hidden = step.root.rename(tmp_path / "elsewhere")
    try:
        assert findings(root) == []
    finally:
        hidden.rename(step.root)


def test_the_artifact_of_a_run_is_found_in_its_folder(artifact, tmp_path):
    root = artifact("hf").rename(tmp_path / "artifact")
    assert find_artifact(root) == find_artifact(tmp_path) == root
    with pytest.raises(InputError, match=r"has no llmc-manifest\.json"):
        find_artifact(root.parent.parent)
    with pytest.raises(InputError, match="does not exist"):
        find_artifact(tmp_path / "nowhere")


# ---- one byte


@pytest.mark.usefixtures("files_only")
@pytest.mark.parametrize("target", TARGETS)
def test_a_flipped_byte_is_found_wherever_it_is(artifact, target):
    root = artifact(target)
    assert findings(root) == []
    draw = random.Random(0)
    for path in sorted(root.iterdir()):
        if path.name == MANIFEST:
            continue
        size = path.stat().st_size
        for position in {0, size - 1, *draw.choices(range(size), k=5)}:
            flip(path, position)
            assert {finding.file for finding in findings(root)} == {path.name}
            flip(path, position)
    assert findings(root) == []


@pytest.mark.usefixtures("files_only")
@pytest.mark.parametrize("target", TARGETS)
def test_the_tensor_of_a_flipped_byte_is_named(artifact, target):
    root = artifact(target)
    path = next(path for path in sorted(root.iterdir()) if stored_tensors(path))
    tensors, draw = stored_tensors(path), random.Random(0)
    assert len(tensors) > WEIGHTS
    for name, (start, end) in tensors.items():
        position = draw.choice([start, end - 1, draw.randrange(start, end)])
        flip(path, position)
        assert [(finding.file, finding.tensor) for finding in findings(root)] == [(path.name, name)]
        flip(path, position)


@pytest.mark.usefixtures("files_only")
def test_a_flipped_byte_of_a_header_is_in_no_tensor(artifact):
    root = artifact("vllm-int4")
    flip(root / SHARD, 3)
    (finding,) = findings(root)
    assert str(finding) == f"{SHARD}: is not as recorded, outside of its tensors"


@pytest.mark.parametrize("target", TARGETS)
def test_a_flipped_byte_of_a_weight_is_found_in_the_weight_too(artifact, target):
    root = artifact(target)
    path = next(path for path in sorted(root.iterdir()) if stored_tensors(path))
    endings = (".weight", ".weight_packed", ".codes")
    codes = next(name for name in stored_tensors(path) if name.startswith(LAYER) and name.endswith(endings))
    flip(path, sum(stored_tensors(path)[codes]) // 2)
    found = checks(root)
    assert [finding.tensor for finding in found["files"].findings] == [codes]
    assert [(one.tensor, one.what) for one in found["weights"].findings] == [
        (f"{LAYER}.weight", "its codes are not as recorded")
    ]
    assert found["generation"].not_run


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["config.json", SHARD, "model.onnx"])
def test_headers_that_cannot_be_read_are_findings(artifact, target, name):
    root = artifact(target)
    if not (root / name).is_file():
        pytest.skip("another format")
    for position in (2, 30, 61):
        flip(root / name, position)
        found = checks(root)
        assert [finding.file for finding in found["files"].findings] == [name]
        flip(root / name, position)


def test_every_byte_of_the_manifest_counts(artifact):
    root = artifact("trt-int4")
    path, draw = root / MANIFEST, random.Random(0)
    content = path.read_bytes()
    for position in [0, len(content) - 1, content.index(b'"schema": 2') + 10, *draw.choices(range(len(content)), k=80)]:
        byte = draw.choice([value for value in b"019 \n,}\xff" if value != content[position]])
        path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
        (check,) = audit(root, silent).checks
        assert [finding.file for finding in check.findings] == [MANIFEST]


# ---- files


def test_missing_and_unknown_files_are_named(artifact):
    root = artifact("vllm-int4")
    (root / "tokenizer.json").unlink()
    (root / "notes.txt").write_text("mine")
    (root / "deep").mkdir()
    (root / "deep" / MANIFEST).write_text("{}")
    assert [str(finding) for finding in findings(root)] == [
        "tokenizer.json: is missing",
        f"deep/{MANIFEST}: is not in the manifest",
        "notes.txt: is not in the manifest",
    ]


def test_a_file_that_was_cut_short_says_by_how_much(artifact):
    root = artifact("hf")
    content = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(content[:-1])
    first, second = checks(root)["files"].findings
    assert str(first) == f"{SHARD}: has {len(content) - 1} bytes, and {len(content)} were recorded"
    assert second.tensor is not None


def test_a_shard_that_is_missing_is_a_finding_of_every_check(artifact):
    root = artifact("vllm-int4")
    (root / SHARD).unlink()
    found = checks(root)
    assert [name for name, check in found.items() if check.findings] == ["files", "structure", "weights"]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
        (lambda path: path.symlink_to("config.json"), "is a symbolic link"),
        (lambda path: path.symlink_to("."), "is a symbolic link"),
        (os.mkfifo, "is no ordinary file"),
    ],
)
def test_what_no_target_writes_is_a_finding_and_is_not_opened(artifact, make, what):
    root = artifact("hf")
    make(root / "more.safetensors")
    assert [str(finding) for finding in findings(root)] == [f"more.safetensors: {what}"]


def test_an_empty_folder_is_a_finding(artifact):
    root = artifact("hf")
    (root / "more" / "deep").mkdir(parents=True)
    assert [str(finding) for finding in findings(root)] == ["more/deep: is an empty folder"]
    assert checks(root)["weights"].checked == WEIGHTS


def test_a_recorded_file_behind_a_link_is_a_finding(artifact, tmp_path):
    root = artifact("onnx-int4")
    (root / "model.onnx").rename(tmp_path / "elsewhere")
    (root / "model.onnx").symlink_to(tmp_path / "elsewhere")
    verdict = audit(root, silent)
    assert [str(finding) for finding in verdict.findings] == ["model.onnx: is a symbolic link"]
    assert verdict.unchecked == ["structure", "tokenizer", "weights", "generation"]


def test_a_program_that_a_runtime_would_load_is_a_finding_even_where_it_was_recorded(artifact):
    root = artifact("onnx-int4")
    path, manifest = root / "genai_config.json", read_manifest(root)
    settings = json.loads(path.read_text())
    settings["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    path.write_text(json.dumps(settings))
    record = FileRecord(path.stat().st_size, digest_file(path))
    replace(manifest, files=manifest.files | {"genai_config.json": record}).write(root)
    assert [str(finding) for finding in findings(root)] == [
        "genai_config.json: has custom_ops_library: the runtime would load a program"
    ]
    replace(read_manifest(root), target="abacus").write(root)
    assert len(findings(root)) == 1, "whatever the target is said to be"


# ---- what the files mean


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_compared_with_the_manifest(artifact, target):
    root = artifact(target)
    manifest = read_manifest(root)
    weights = dict(manifest.weights)
    weights[f"{LAYER}.weight"] = weights[f"{LAYER}.weight"] | {"scales": "0" * 32}
    weights["model.extra.weight"] = weights.pop("model.norm.weight")
    replace(manifest, weights=weights).write(root)
    assert sorted(str(finding) for finding in findings(root)) == [
        "tensor model.extra.weight: is missing",
        f"tensor {LAYER}.weight: its scales are not as recorded",
        "tensor model.norm.weight: is not in the manifest",
    ]


def reseal(root, **changed):
    """Write another probe into the manifest, as somebody would who knows how it is sealed."""
    manifest = read_manifest(root)
    replace(manifest, probe=replace(manifest.probe, **changed)).write(root)
    return manifest.probe


@pytest.mark.parametrize("target", RUN_HERE)
def test_another_generation_is_found(artifact, target):
    root = artifact(target)
    continuation = read_manifest(root).probe.continuation
    reseal(root, continuation=[*continuation[:3], (continuation[3] + 1) % 288, *continuation[4:]])
    found = [finding.what for finding in checks(root)["generation"].findings]
    assert found[0] == (
        f"token 4 of the greedy generation is {continuation[3]}, and {(continuation[3] + 1) % 288} was recorded"
    )


@pytest.mark.parametrize("target", RUN_HERE)
def test_other_logits_are_found(artifact, target):
    root = artifact(target)
    first, *others = read_manifest(root).probe.positions
    reseal(root, positions=[replace(first, normalizer=first.normalizer + 1), *others])
    (finding,) = checks(root)["generation"].findings
    assert finding.what.startswith("the logits of token 1 are 1 from the recorded ones")


@pytest.mark.parametrize("logits", [1e9, 0.0011, float("nan")])
def test_a_tolerance_that_the_target_does_not_have_is_a_finding(artifact, logits):
    root = artifact("hf")
    reseal(root, tolerance=Tolerance(logits, "so be it"))
    found = [str(finding) for finding in checks(root)["generation"].findings]
    assert f"{MANIFEST}: the manifest lets logits be {logits:g} apart, and hf allows 0.001" in found


def test_another_version_of_the_runtime_is_said(artifact):
    root = artifact("onnx-int4")
    here = reseal(root, runtime="onnxruntime 0.1 CPU").runtime
    generation = checks(root)["generation"]
    assert generation.findings == []
    assert generation.remarks == [f"recorded in onnxruntime 0.1 CPU, run here in {here}"]


def test_a_runtime_that_is_not_here_is_said(artifact, monkeypatch):
    from targets.huggingface import HuggingFace

    root = artifact("hf")
    monkeypatch.setattr(HuggingFace, "why_not_run", lambda self: "it is elsewhere")
    generation = checks(root)["generation"]
    assert (generation.findings, generation.not_run) == ([], "it is elsewhere")


def test_a_runtime_that_breaks_is_a_finding_that_says_which_one_did_not(artifact, monkeypatch):
    from targets.huggingface import HuggingFace

    def broken(self, artifact):
        raise ValueError("no such operator")

    root = artifact("hf")
    monkeypatch.setattr(HuggingFace, "open", broken)
    generation = checks(root)["generation"]
    assert [finding.what for finding in generation.findings] == ["breaks with ValueError: no such operator"]
    assert generation.remarks == [f"recorded in {read_manifest(root).probe.runtime}"]


def test_a_reader_that_is_not_here_is_said(artifact, monkeypatch):
    from targets.huggingface import HuggingFace

    def missing(self, artifact):
        raise MissingExtra("abacus", "counting", "Reading")

    root = artifact("hf")
    monkeypatch.setattr(HuggingFace, "read_back", missing)
    assert "pip install 'llmc-compiler[counting]'" in checks(root)["weights"].not_run


def test_what_a_reader_refuses_is_a_finding_and_what_breaks_it_is_not(artifact, monkeypatch):
    from targets.huggingface import HuggingFace

    def reader(error):
        def read_back(self, artifact):
            raise error

        return read_back

    root = artifact("hf")
    monkeypatch.setattr(HuggingFace, "read_back", reader(RunError("other values")))
    assert [finding.what for finding in findings(root)] == ["other values"]
    monkeypatch.setattr(HuggingFace, "read_back", reader(KeyError("a fault of the reader")))
    with pytest.raises(KeyError):
        audit(root, silent)
    (root / "notes.txt").write_text("mine")
    assert "KeyError" in checks(root)["weights"].findings[0].what


# ---- tokenizers


def spaced_tokenizer():
    """One that joins words over spaces, where onnxruntime-genai splits before it merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from compressor.encoding import TEXTS

    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁")})
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", *letters, "▁▁"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("▁", "▁")], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>")


def record_again(root):
    """Let the manifest say that the files are as they are now."""
    files = {path.name: FileRecord(path.stat().st_size, digest_file(path)) for path in root.iterdir()}
    files.pop(MANIFEST)
    replace(read_manifest(root), files=files).write(root)


def test_a_runtime_that_makes_other_tokens_of_text_is_found(artifact):
    pytest.importorskip("onnxruntime_genai")
    root = artifact("onnx-int4")
    spaced_tokenizer().save_pretrained(root)
    record_again(root)
    found = checks(root)
    assert [name for name, check in found.items() if check.findings] == ["tokenizer"]
    assert str(found["tokenizer"].findings[0]).startswith("the runtime's own differs: of ")
    served = replace(read_manifest(root), options=read_manifest(root).options | {"tokenizer": "transformers"})
    served.write(root)
    assert findings(root) == []


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_tokenizer_that_cannot_be_opened_is_found(artifact, target):
    root = artifact(target)
    (root / "tokenizer.json").write_text("{}")
    record_again(root)
    (finding,) = findings(root)
    assert "cannot be opened" in finding.what


def test_a_tokenizer_that_cannot_be_asked_is_said(artifact, monkeypatch):
    root = artifact("onnx-int4")
    monkeypatch.setattr("targets.onnx.tokenizer.is_here", lambda: False)
    verdict = audit(root, silent)
    assert (verdict.findings, verdict.unchecked) == ([], ["tokenizer"])
    assert "onnxruntime-genai" in checks(root)["tokenizer"].not_run


def test_a_tokenizer_with_code_of_its_own_is_not_run(artifact):
    root = artifact("hf")
    (root / "tokenizer.json").unlink()
    path = root / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}))
    record_again(root)
    verdict = audit(root, silent)
    assert (verdict.findings, verdict.unchecked) == ([], ["tokenizer"])


# ---- manifests from elsewhere


def test_an_old_manifest_says_what_it_cannot_tell(artifact):
    root = artifact("trt-int4")
    path = root / MANIFEST
    raw = json.loads(path.read_text())
    kept = {key: raw[key] for key in ("target", "options", "key", "input", "schemes")}
    files = {name: record["sha256"] for name, record in raw["files"].items()}
    path.write_text(json.dumps({"schema": 1, **kept, "files": files}))
    found = checks(root)
    assert [finding for check in found.values() for finding in check.findings] == []
    assert [name for name, check in found.items() if check.not_run] == ["manifest", "weights", "generation"]
    flip(root / SHARD, 2000)
    assert [finding.file for finding in checks(root)["files"].findings] == [SHARD]


def test_a_target_that_is_not_installed_leaves_the_files_to_check(artifact):
    root = artifact("hf")
    replace(read_manifest(root), target="abacus").write(root)
    found = checks(root)
    assert "Unknown target 'abacus'" in found["weights"].not_run
    assert found["files"].checked
    flip(root / SHARD, 2000)
    assert findings(root)
