import json

import pytest

from compressor.errors import InputError
from compressor.files import crc32_range, digest_file, digest_json, write_json
from compressor.manifest import DamagedManifest, FileRecord, Manifest, TensorRecord, read_manifest
from compressor.probe import Position, Probe
from compressor.target import MANIFEST, Tolerance

PROBE = Probe("a runtime", [1], [2], [Position([2, 3], [0.1, -0.25], 1.5)], Tolerance(0.1, "a reason"))
WRITTEN = Manifest(
    target="hf",
    options={"choice": None},
    key="k",
    input="i",
    schemes={"layer": "int4 g64 symmetric"},
    files={"a/b.bin": FileRecord(3, "0" * 64)},
    tensors={"a/b.bin": {"t": TensorRecord(0, 3, 7)}},
    weights={"layer.weight": {"codes": "1", "scales": "2"}},
    probe=PROBE,
    not_probed=None,
)


def test_what_is_written_is_read(tmp_path):
    WRITTEN.write(tmp_path)
    assert read_manifest(tmp_path) == WRITTEN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-2], "is not valid JSON"),
        (lambda text: text.replace("hf", "\udcff"), "is not valid JSON"),
        (lambda text: "[]", "is not a manifest"),
        (lambda text: text.replace('"k"', '"l"'), "does not fit the digest"),
        (lambda text: text.replace("0.1", "0.10"), "does not fit the digest"),
        (lambda text: text.replace("\n", "\t", 1), "does not fit the digest"),
        (lambda text: text.replace('"digest"', '"digess"'), "does not fit the digest"),
        (lambda text: text.replace('"schema": 2', '"schema": 1'), "does not fit the digest"),
        (lambda text: json.dumps(json.loads(text)), "does not fit the digest"),
    ],
)
def test_a_change_is_damage(tmp_path, change, reason):
    WRITTEN.write(tmp_path)
    path = tmp_path / MANIFEST
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(DamagedManifest, match=reason):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"schema": 7}, "manifest schema 7; this version reads 1 and 2"),
        ({"files": 3}, "is not a manifest: files"),
        ({"files": {"../../secret": {"bytes": 1, "sha256": ""}}}, "outside of its folder"),
        ({"files": {"/secret": {"bytes": 1, "sha256": ""}}}, "outside of its folder"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, changed, reason):
    WRITTEN.write(tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text()) | changed
    del raw["digest"]
    write_json(tmp_path / MANIFEST, raw | {"digest": digest_json(raw)})
    with pytest.raises(InputError, match=reason):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="There is no manifest"):
        read_manifest(tmp_path / "elsewhere")


def test_hashing_holds_no_file_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (64 << 10))
    seen = []
    tracemalloc.start()
    digest_file(path, seen.append)
    crc32_range(path, 5, 16 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(seen) == 16 << 20
    assert peak < 4 << 20


def test_a_range_that_the_file_does_not_reach_ends_with_it(tmp_path):
    import zlib

    path = tmp_path / "short"
    path.write_bytes(b"0123456789")
    assert crc32_range(path, 2, 5) == zlib.crc32(b"234")
    assert crc32_range(path, 8, 99) == zlib.crc32(b"89")
    assert crc32_range(path, 50, 99) == 0
