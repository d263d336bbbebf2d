"""The verbs that measure, in real runtimes: they find what the step gives, and keep what was told before a death."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from compressor.bench.run import bench
from compressor.cli import main
from compressor.measure.latency import Workload

DEMO = Path(__file__).parents[2] / "examples" / "demo"
TASKS = DEMO / "tasks"
W8A8 = "rtn:bits=8,group_size=channel,activations=dynamic"  # for which vLLM has kernels on every CPU
RUNS = {"vllm": ("vllm-int8", W8A8), "llama-cpp": ("gguf-q4_0", "rtn:group_size=32")}
NAMES = {"vllm": "vLLM 0.", "llama-cpp": "llama.cpp"}
SHARE = 0.15  # of the 14 and 23 samples may be answered otherwise: rounded activations decide close ones
DAYS = """
task: days
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The day {{{{side}}}} {{{{day}}}} is"
doc_to_choice: ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
doc_to_target: other
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(params=RUNS)
def name(request, engine):
    engine(request.param)
    return request.param


@pytest.fixture
def run(name, compress):
    """The folder of a run, which has measured nothing."""
    return compress(*RUNS[name], "--measure", "none")


@pytest.fixture
def said(capsys):
    """`said(verb, *words)`: what the command line prints as JSON."""

    def ask(*words):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return json.loads(captured.out)

    return ask


def test_tasks_score_as_the_step_does(name, run, said):
    words = [word for task in ("days", "questions") for word in ("--task", TASKS / f"{task}.yaml")]
    ((runtime, shipped),) = said("score", run / "artifact", *words).items()
    (step,) = said("score", run / "steps" / "01-rtn", *words).values()
    assert NAMES[name] in runtime
    assert step["days"]["accuracy"]["value"] > 0.3, "a model that knows nothing would tell nothing"
    for task, metrics in step.items():
        for metric, known in metrics.items():
            if metric != "auc":
                assert shipped[task][metric]["value"] == pytest.approx(known["value"], abs=SHARE), (task, metric)


def test_lm_eval_scores_as_the_step_does(name, run, said, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "days.yaml").write_text(DAYS.format(data=TASKS / "days.jsonl"))
    words = ("--tasks", "days", "--include-path", tmp_path)
    shipped = said("lm-eval", run / "artifact", *words)["days"]
    step = said("lm-eval", run / "steps" / "01-rtn", *words)["days"]
    assert step["acc,none"] > 0.3  # by chance 0.14
    assert shipped["acc,none"] == pytest.approx(step["acc,none"], abs=SHARE)


def test_bench_times_it_in_turns_with_the_step(name, run):
    workloads = [Workload(batch, 16, 8, repeats=3, warmup=1) for batch in (1, 4)]
    found = bench([run / "steps" / "01-rtn", run], workloads, memory=True, progress=lambda *_: None)
    rows = [row for row in found.rows if row.runtime.startswith(NAMES[name])]
    assert [row.workload.batch for row in rows] == [1, 4]
    assert [(row.not_run, len(row.latency.repeats["ttft_ms"])) for row in rows] == [(None, 3)] * 2
    assert min(row.peak_bytes for row in rows) > (run / "artifact").stat().st_size
    assert list(found.pairs[0].ratios) == [1, 4]
    assert not _started()


# A server's process, and the one in which it computes; llama.cpp is one process.
@pytest.mark.parametrize("victim", ["api_server", "VLLM::EngineCore", "llama_cpp_worker"])
def test_what_was_timed_before_a_runtime_is_killed_is_kept(engine, compress, victim):
    name = "llama-cpp" if victim == "llama_cpp_worker" else "vllm"
    engine(name)
    folder = compress(*RUNS[name], "--measure", "none")

    def progress(what, done, total):
        if what.startswith("timing batch 2") and done == 3:
            (process,) = [one for one in _started() if victim in " ".join(one.cmdline())]
            os.kill(process.pid, signal.SIGKILL)

    workloads = [Workload(batch, 16, 8, repeats=5, warmup=0) for batch in (1, 2)]
    found = bench([folder / "steps" / "01-rtn", folder], workloads, False, progress)
    step, whole, other, broken = found.rows
    assert (step.not_run, whole.not_run, other.not_run) == (None, None, None)
    assert [len(row.latency.repeats["ttft_ms"]) for row in (step, whole, other, broken)] == [5, 5, 5, 3]
    assert broken.not_run.startswith("it broke after 3 of 5 repeats (batch 2, 16 + 8 tokens): ")
    assert broken.not_run.partition(": ")[2].startswith(
        ("vLLM ended with", "vLLM was ended by", "llama.cpp was ended by")
    )
    assert not _started()


def _started():
    """Processes that were started from here and still run."""
    found = psutil.Process().children(recursive=True)
    return [
        one for one in found if one.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in str(one.cmdline())
    ]
