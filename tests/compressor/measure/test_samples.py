import numpy as np
import pytest

from compressor.errors import InputError
from compressor.ledger import SamplesRecord
from compressor.measure import samples
from compressor.measure.accuracy import TokenScores

TOKENS = np.arange(12).reshape(3, 4)
ORIGINS = np.array([[0, 0, 0, 1], [1, 1, 2, 2], [2, 2, 2, 2]])


def scores(shape=(3, 3), seed=0):
    draw = np.random.default_rng(seed)
    losses = [draw.uniform(0, 5, shape).astype(np.float32) for _ in range(3)]
    return TokenScores(*losses, *(draw.random(shape) < 0.5 for _ in range(3)))


@pytest.fixture
def written(tmp_path):
    def make(origins=ORIGINS, found=None):
        path = samples.path_of("gptq:bits=4", "key")
        table = samples.table(TOKENS, origins, scores() if found is None else found)
        return tmp_path, SamplesRecord(path.as_posix(), samples.write(tmp_path / path, table), table.num_rows)

    return make


def test_every_predicted_token_has_its_line(written):
    found = samples.read(*written())
    assert found["token"].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert found["window"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["position"].tolist() == [1, 2, 3] * 3
    assert found["document"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2], "that of the token that is predicted"
    for name in ("original_loss", "loss", "kl", "same_top1", "original_correct", "correct"):
        assert np.array_equal(found[name], getattr(scores(), name).ravel())
    assert found["loss"].dtype == np.float32
    assert found["correct"].dtype == bool


def test_running_text_has_no_documents(written):
    assert samples.read(*written(origins=None))["document"].tolist() == [-1] * 9


def test_the_file_is_what_other_readers_expect(written):
    import pandas

    folder, record = written()
    frame = pandas.read_parquet(folder / record.path)
    assert list(frame.columns) == list(samples.COLUMNS)
    assert frame.groupby("window").loss.mean().to_numpy() == pytest.approx(scores().windows()[:, 1], rel=1e-6)


def test_the_same_samples_are_the_same_bytes(written):
    assert written()[1] == written()[1]


def test_paths_are_plain_and_a_rows_own():
    first, second = (samples.path_of("onnx-int4, original: a/b", key) for key in ("k1", "k2"))
    assert first != second
    assert first.as_posix().startswith("samples/onnx-int4-original-a-b-")
    assert first == samples.path_of("onnx-int4, original: a/b", "k1")


def test_a_missing_file(written):
    folder, record = written()
    (folder / record.path).unlink()
    assert not samples.is_intact(folder, record)
    with pytest.raises(InputError, match=r"The samples .*\.parquet are missing"):
        samples.read(folder, record)


def test_a_changed_byte_is_seen_before_it_is_read(written):
    folder, record = written()
    data = bytearray((folder / record.path).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / record.path).write_bytes(data)
    assert not samples.is_intact(folder, record)
    with pytest.raises(InputError, match="not those that the ledger names"):
        samples.read(folder, record)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"not parquet at all"])
def test_a_file_that_was_damaged_before_it_was_recorded(written, damage):
    from compressor.files import digest_file

    folder, record = written()
    path = folder / record.path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="cannot be read as samples"):
        samples.read(folder, SamplesRecord(record.path, digest_file(path), 9))


def test_no_samples_are_no_samples(tmp_path):
    digest = samples.write(tmp_path / "samples/a.parquet", samples.table(TOKENS[:0], None, scores((0, 3))))
    with pytest.raises(InputError, match="holds no samples"):
        samples.read(tmp_path, SamplesRecord("samples/a.parquet", digest, 0))


def test_another_table(tmp_path):
    digest = samples.write(tmp_path / "samples/a.parquet", samples.table(TOKENS, None, scores()).drop(["kl"]))
    with pytest.raises(InputError, match=r"cannot be read as samples: .*kl"):
        samples.read(tmp_path, SamplesRecord("samples/a.parquet", digest, 9))


def test_a_write_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    from pyarrow import parquet

    def breaks(table, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk")

    monkeypatch.setattr(parquet, "write_table", breaks)
    with pytest.raises(OSError, match="disk"):
        samples.write(tmp_path / "samples/a.parquet", samples.table(TOKENS, None, scores()))
    assert list((tmp_path / "samples").iterdir()) == []
