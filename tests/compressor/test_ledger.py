"""The ledger file: its schema is documented, and what is written follows it."""

import json
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.ledger import SCHEMA, Ledger, SamplesRecord, StepRecord, TextRecord, load_ledger
from compressor.ledger_schema import schema
from compressor.measure.accuracy import Quality
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate
from compressor.run_folder import runs_in

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def ledger():
    odd = Estimate(float("nan"), None)
    times = {"p50": 12.0, "p95": 15.0}
    latency = Latency(1, 8, 4, times, times, Estimate(1.0, 0.1), {"ttft_ms": [11.0], "itl_ms": [12.0]}, ["gptq"])
    quality = Quality(Estimate(float("inf"), 0.5), odd, odd, odd)
    row = StepRecord("gptq", quality=quality, latency=[latency], samples=SamplesRecord("samples/a.parquet", "00", 9))
    return Ledger("m", {"passes": []}, texts={"evaluation": TextRecord("e.jsonl", 3, 4, "d", [], 2)}, steps=[row])


def test_the_documented_schema_is_that_of_the_code():
    kept = json.loads((DOCS / "ledger.schema.json").read_text())
    assert kept == schema(), "python -m compressor.ledger_schema > docs/ledger.schema.json"


def test_what_is_written_follows_the_schema(ledger):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema())
    validator.check_schema(schema())
    validator.validate(ledger.plain())
    for damage in (lambda plain: plain.pop("steps"), lambda plain: plain["steps"][0].update(latency=None)):
        plain = ledger.plain()
        damage(plain)
        assert not validator.is_valid(plain)


def test_figures_that_are_no_numbers_come_back(ledger, tmp_path):
    ledger.save(tmp_path)
    quality = load_ledger(tmp_path).steps[0].quality
    assert quality.perplexity.value == float("inf")
    assert str(quality.kl.value) == "nan"


def test_the_schema_before_this_one_is_read(ledger, tmp_path):
    plain = ledger.plain()
    plain["schema"] = 1
    del plain["digest"]
    del plain["steps"][0]["samples"]
    del plain["steps"][0]["latency"][0]["repeats"]
    (tmp_path / "ledger.json").write_text(json.dumps(plain))
    assert load_ledger(tmp_path).steps[0].samples is None


@pytest.mark.parametrize("found", [0, SCHEMA + 1])
def test_a_ledger_of_another_schema_is_refused(ledger, tmp_path, found):
    ledger.schema = found
    ledger.save(tmp_path)
    with pytest.raises(InputError, match=f"has ledger schema {found}; this version reads 1, 2 and 3"):
        load_ledger(tmp_path)


def test_the_digest_is_of_what_the_file_holds(ledger, tmp_path):
    ledger.save(tmp_path)
    first = load_ledger(tmp_path)
    assert first.digest == json.loads((tmp_path / "ledger.json").read_text())["digest"]
    first.steps[0].notes.append("more")
    first.save(tmp_path)
    assert load_ledger(tmp_path).digest not in (None, first.digest)


def test_a_changed_ledger_is_refused(ledger, tmp_path):
    ledger.save(tmp_path)
    file = tmp_path / "ledger.json"
    file.write_text(file.read_text().replace('"windows": 3', '"windows": 4'))
    with pytest.raises(InputError, match="does not fit the digest of itself"):
        load_ledger(tmp_path)


def test_what_is_no_ledger(tmp_path):
    (tmp_path / "ledger.json").write_text('{"model": 3')
    with pytest.raises(InputError, match="is not a ledger"):
        load_ledger(tmp_path)


def test_what_is_kept_beside_a_run_is_no_run_for_another_target(ledger, tmp_path):
    for folder in ("steps", "hf", "more-samples"):
        (tmp_path / folder).mkdir()
    ledger.save(tmp_path / "hf")
    ledger.save(tmp_path / "more-samples")
    assert len(runs_in(tmp_path)) == 2
    ledger.save(tmp_path)
    assert runs_in(tmp_path) == []
