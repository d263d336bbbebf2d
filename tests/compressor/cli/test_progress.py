"""Progress: what is shown on a terminal of 80 columns, and as lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from compressor.cli.progress import ConsoleProgress, clock
from compressor.stages import WHOLE, Stages


def shown(terminal, width=80, calls=()):
    """What is written for these calls (seconds later, what, done, total)."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]
        patch.setattr("compressor.cli.progress.time.monotonic", lambda: now[0])
        with ConsoleProgress(console=console) as progress:
            for later, *call in calls:
                now[0] += later
                progress(*call)
            progress._bars.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")


LONG = "timing onnx-fp32, original, onnx-int4, accuracy_level=0, onnx-int4 and what else there is to time"


def test_eighty_columns_hold_the_whole_run_and_a_long_name():
    calls = [(0, WHOLE, 0, 100), (60, WHOLE, 25, 100), (0, LONG, 1, 6), (30, LONG, 2, 6)]
    lines = shown(True, calls=calls).splitlines()
    assert max(map(len, lines)) <= 80
    whole, part = [line for line in lines if line.startswith("whole run")][-1], lines[-1]
    assert "25/100" in whole and "1:30, 2:30 left" in whole, "30 s later"
    assert "timing onnx-fp32" in part and "…" in part
    assert "2/6" in part and "0:30" in part
    assert part.count("━") == 5, "a third of the 16 cells of a bar"


def test_what_is_over_leaves_a_line_and_no_bar():
    lines = shown(True, calls=[(0, "gptq", 0, 2), (90, "gptq", 2, 2), (0, "copying", 0, 1)]).splitlines()
    assert any(line.endswith("gptq, 1:30") for line in lines)
    assert "gptq" not in lines[-1]


def test_without_a_terminal_each_phase_is_a_line_and_so_is_silence():
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.cli.progress.SILENCE", 0.0)
        with ConsoleProgress(console=Console(file=file, force_terminal=False, width=80)) as progress:
            progress(WHOLE, 0, 100)
            progress("gptq [4]", 1, 30)
            progress("gptq [4]", 2, 30)
            progress._last_line -= 1
            for _ in range(400):
                if "of 30" in file.getvalue():
                    break
                progress._over.wait(0.01)
    first, second = file.getvalue().splitlines()[:2]
    assert first == "gptq [4] ..."
    assert second.startswith("gptq [4]: 2 of 30, 0:0")


def test_the_whole_run_is_a_share_of_the_work_of_all_stages():
    told = []
    stages = Stages(lambda *call: told.append(call), [[1, 7, 2], [0, 10]])
    stages.begin(0)
    stages.advance()
    stages.advance()
    stages.begin(1)
    stages.advance()
    stages.advance()
    assert told == [(WHOLE, share, 100) for share in (0, 5, 40, 50, 50, 100)]


def test_a_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]
