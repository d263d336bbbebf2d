"""Progress on stderr: bars on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compressor.escaping import rich_text


class ConsoleProgress:
    """Context manager that is called as (what, done, total), and shows nothing in its first `after` seconds."""

    def __init__(self, quiet: bool = False, after: float = 0.0) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._shown_from = time.monotonic() + after
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() < self._shown_from:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(rich_text(what), total=total)
            if not self._console.is_terminal:
                self._console.print(f"{rich_text(what)} ...", highlight=False)
        self._bars.update(self._tasks[what], completed=done, total=total)
