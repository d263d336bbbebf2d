import pytest

from compressor.gate.decide import Decision, Finding, Verdict
from compressor.ledger import (
    ArtifactRecord,
    AuditRecord,
    Ledger,
    SensitivityRecord,
    StepRecord,
    TextRecord,
    Verification,
)
from compressor.measure.accuracy import Quality
from compressor.measure.continuations import Continuation
from compressor.measure.latency import Latency
from compressor.measure.layers import LayerError
from compressor.measure.statistics import Estimate
from compressor.report.tables import Table

RUNTIME = "onnxruntime 1 CPU"


def quality(perplexity, kl):
    increase = Estimate(perplexity / 30 - 1, 0.004)
    return Quality(Estimate(perplexity, 2.0), increase, Estimate(kl, 0.003), Estimate(1 - kl, 0.005))


def latency(ms):
    times = {"p50": ms, "p95": 1.2 * ms}
    repeats = {"ttft_ms": [9 * ms, 10 * ms, 11 * ms], "itl_ms": [0.9 * ms, ms, 1.3 * ms]}
    return Latency(1, 128, 32, times, times, Estimate(1000 / ms, 1.0), repeats, ["a", "b"])


@pytest.fixture
def make_run():
    """A whole ledger, made up: nothing in it was measured."""

    def make(perplexity=33.0, size=170 << 20, ms=11.6, target="onnx-int4"):
        layers = [LayerError(layer, 0.05 + 0.01 * layer, 0.02 + 0.01 * layer) for layer in range(30)]
        sensitivity = [
            SensitivityRecord([f"model.layers.{layer}.mlp.{name}_proj"], "4g64", {"4g64": 1e-5 * (layer + 1)})
            for layer in range(30)
            for name in ("up", "down")
        ]
        losses = [0.2 + 2.0 / (1 + step / 40) + 0.1 * (step % 7) for step in range(500)]
        audit = [
            AuditRecord("overlap", "warning", "1.3% of the evaluation's 13-token sequences are in the text too"),
            AuditRecord("languages", "not checked", "py3langid is not installed"),
            AuditRecord("tokens", "ok", "65536 through each of 211 linears (no experts)"),
        ]
        said = [Continuation("Once upon <b>a time</b>", "there was a fox & a hen")]
        other = [Continuation("Once upon <b>a time</b>", "there was a dog")]
        steps = [
            StepRecord("original", size_bytes=519 << 20, quality=quality(30.0, 0.0), key="k0", continuations=said),
            StepRecord(
                "gptq:group_size=64,symmetric=false,damping=0.01", 248.0, 911 << 20, 150 << 20, 9.2,
                "transformers 5 CPU", quality(perplexity, 0.09), [latency(30.0)], key="k1",
                layers=layers, sensitivity=sensitivity, continuations=other, losses=losses,
            ),
            StepRecord("onnx-fp32, original", runtime=RUNTIME, quality=quality(30.0, 0.0), latency=[latency(23.3)]),
            StepRecord(
                target, 3.0, 600 << 20, size, 10.1, RUNTIME, quality(perplexity, 0.09), [latency(ms)],
                key="k2", continuations=other,
            ),
        ]  # fmt: skip
        return Ledger(
            model="models/a-model-with-quite-a-long-name",
            recipe={"model": "models/a", "passes": [{"gptq": {"bits": 4}}]},
            environment={"cpu": "AMD EPYC", "threads": 1, "llmc": "0.1.0", "packages": {"torch": "2"}},
            texts={"evaluation": TextRecord("wiki.jsonl", 24, 512, "d" * 64, ["noted"])},
            audit=audit,
            warnings=["beware of <script>alert(1)</script>"],
            steps=steps,
            artifact=ArtifactRecord(
                target, "out/artifact", size, "e" * 64, Verification("reader", 272, []), "serve it"
            ),
        )

    return make


@pytest.fixture
def decision():
    finding = Finding(
        metric="perplexity", title="perplexity", unit="share", verdict=Verdict.FAIL, before=30.0, after=33.0,
        change=0.1, lower=0.09, upper=0.11, limit=0.02, p_value=1e-5, p_adjusted=1e-5, detectable=0.01, more=None,
        samples=12000, clusters=24, cluster_unit="window", reason=None,
    )  # fmt: skip
    return Decision("out/ledger.json", "onnx-int4", "original", 0.05, [finding])


@pytest.fixture
def run_folder(make_run, decision, tmp_path):
    """The folder of a run that a gate has judged."""

    def make(name="run", judged=True, **values):
        folder = tmp_path / name
        folder.mkdir()
        make_run(**values).save(folder)
        if judged:
            decision.save(folder)
        return folder

    return make


@pytest.fixture
def blamed():
    """What `llmc bisect` keeps for reports, made up: names as long as they get."""
    names = [f"model.layers.{layer}.self_attn.q_proj/k_proj/v_proj" for layer in range(17, 21)]
    skipped = "+".join(f"model.layers.{layer}.self_attn.{one}_proj" for layer in range(17, 21) for one in "qkv")
    headers = ("repair", "verdict", "KL from the original", "change", "size", "made in")
    rows = [
        ("more bits", "FAIL", "0.0812 nats", "-0.0107 ± 0.0009", "+512 KiB", "412.0 s"),
        ("left out, proposed", "PASS", "0.0404 nats", "-0.0515 ± 0.0021", "+3.4 MiB", "409.1 s"),
    ]
    return {
        "headline": f"{', '.join(names[:3])} and 1 more of gptq:group_size=64",
        "tables": [Table("Layers to blame", ("layer", "off by"), [(name, "4.62%") for name in names]),
                   Table("Repairs", headers, rows)],
        "repair": f"--pass gptq:group_size=64,skip={skipped}",
        "remarks": ["judge what ships by `llmc gate`, not by <i>this</i>."],
    }  # fmt: skip
