"""Progress on stderr: on a terminal the whole run and what is being done in it, elsewhere lines."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from compressor.escaping import rich_text
from compressor.stages import WHOLE

SILENCE = 25.0  # seconds without a line, after which one says what is still being done
WORTH_A_LINE = 1.0  # seconds that a phase took to be mentioned once it is over


class ConsoleProgress:
    """Context manager that is called as (what, done, total), and shows nothing in its first `after` seconds."""

    def __init__(self, quiet: bool = False, after: float = 0.0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=quiet)
        self._begun = time.monotonic()
        self._shown_from = self._begun + after
        self._bars = _bars(self._console)
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._last: tuple[str, int, int] | None = None
        self._last_line = self._begun
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        if not self._console.is_terminal:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._shown_from:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(rich_text(what), total=total, ends=None), now
            if what != WHOLE:
                self._line(f"{what} ...")
        task, since = self._tasks[what]
        if what == WHOLE:
            self._bars.update(task, completed=done, total=total, ends=self._ends(done / total))
            return
        self._last = what, done, total
        self._bars.update(task, completed=done, total=total, visible=done < total)
        if done >= total and now - since > WORTH_A_LINE and self._console.is_terminal:
            self._bars.print(f"[dim]{rich_text(what)}, {clock(now - since)}[/]", highlight=False)

    def _ends(self, share: float) -> float | None:
        """When the whole run will be over, if it goes on as it went."""
        return self._begun + (time.monotonic() - self._begun) / share if share > 0 else None

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(rich_text(text), highlight=False)

    def _beat(self) -> None:
        """Where there are no bars, a line says now and then that the run goes on."""
        while not self._over.wait(1.0):
            if self._last is not None and time.monotonic() - self._last_line > SILENCE:
                what, done, total = self._last
                self._line(f"{what}: {done} of {total}, {clock(time.monotonic() - self._tasks[what][1])}")


def _bars(console: Console) -> Progress:
    """What is done takes the room that a bar, the count and the time leave: 80 columns are enough."""
    name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}", table_column=name),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        _Clock(table_column=Column(no_wrap=True, min_width=15)),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, expand=True, get_time=time.monotonic)


class _Clock(ProgressColumn):
    """How long it has taken, which goes on while nothing else does, and how long the whole run will still take."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        left = "" if ends is None else f", {clock(max(0.0, ends - task.get_time()))} left"
        return Text(clock(task.elapsed or 0.0) + left)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
