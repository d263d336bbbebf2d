"""Builds an engine of an ONNX file with TensorRT-RTX, for GPUs that need not be there.

API: docs.nvidia.com/deeplearning/tensorrt-rtx, "CPU-Only AOT and TensorRT-RTX Engines".
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import tensorrt_rtx_bindings as trt

from compressor.errors import RunError
from compressor.pass_ import Progress
from targets.tensorrt_rtx.shapes import Range

VERSION: str = trt.__version__


def build(
    graph: Path, engine: Path, capabilities: tuple[int, ...], shapes: Mapping[str, Range], step: Progress
) -> None:
    """Write the engine of an ONNX file.

    Args:
        capabilities: of the GPUs it shall run on, as 89 for 8.9.
        shapes: of every input of the graph.

    Raises:
        RunError: TensorRT-RTX does not take the graph, or cannot build it; the sentence has its last error.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # the network's weights are its memory, until the engine is built
    if not parser.parse_from_file(str(graph)):
        raise RunError(f"TensorRT-RTX {VERSION} does not take the graph: {log.last_error}")
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    settings.add_optimization_profile(_profile(builder, shapes))
    monitor = _Monitor(step)  # named, like the writer, since the builder does not keep it alive
    settings.progress_monitor = monitor
    with engine.open("wb") as file, _stopped_by_interrupt(monitor):
        writer = _Writer(file)
        built = builder.build_serialized_network_to_stream(network, settings, writer)
    if monitor.stopped:
        raise KeyboardInterrupt
    if not built:
        raise RunError(f"TensorRT-RTX {VERSION} cannot build the engine: {log.last_error}")


def is_malformed(engine: Path) -> bool:
    """Whether the runtime says of the file that it is no engine. Whether it runs here is another question."""
    runtime = trt.Runtime(_Log())
    with engine.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    _, reasons = runtime.get_engine_validity(header)
    return bool(reasons & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE))


def _profile(builder: Any, shapes: Mapping[str, Range]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    return profile


@contextmanager
def _stopped_by_interrupt(monitor: _Monitor) -> Iterator[None]:
    """Let an interrupt stop the build: raised in one of the builder's callbacks it would be lost."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, monitor.stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Log(trt.ILogger):
    """Keeps what went wrong instead of printing it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)

    @property
    def last_error(self) -> str:
        return self.errors[-1] if self.errors else "it gave no reason."


class _Writer(trt.IStreamWriter):
    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file

    def write(self, content: bytes) -> int:
        return self._file.write(content)


class _Monitor(trt.IProgressMonitor):
    """Passes the steps of the two phases that take time on to a progress line."""

    def __init__(self, step: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._step = step
        self._totals: dict[str, int] = {}
        self.stopped = False

    def stop(self, number: int, frame: Any) -> None:
        """Give up at the next step. A signal handler."""
        self.stopped = True

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._totals[phase] = steps

    def step_complete(self, phase: str, step: int) -> bool:
        if phase in ("Building engine", "Computing profile costs"):
            self._step(f"TensorRT-RTX, {phase.lower()}", step + 1, self._totals[phase])
        return not self.stopped

    def phase_finish(self, phase: str) -> None: ...
