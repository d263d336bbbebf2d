"""How much room and time a run will take, as far as the model's shape tells before any work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil
import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.convert import Outline
from compressor.errors import InputError
from compressor.files import folder_bytes
from compressor.plan import Plan
from compressor.quantized import Scheme
from compressor.recipe import MeasureSection
from compressor.report.tables import size

SCALE_BYTES = 2
ALONE = 8  # a token that is generated alone costs as much as so many of a long text
PROBE = 512  # rows of the square matrix whose product says how fast the machine computes
SPREAD = (0.5, 3.0)  # how far off the time may be: runtimes and passes differ
QUICK_WINDOWS, CALIBRATION_READS = 24, 6  # a pass that calibrates: forwards, their repeats, and statistics


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        artifact: bytes of each artifact's weights.
        steps: bytes of all steps.
        memory: bytes of the largest block in float32, the least that a pass needs.
    """

    artifact: list[int]
    steps: int
    memory: int

    @classmethod
    def of(cls, plans: Sequence[Plan], model: Checkpoint | Outline) -> Forecast:
        """What the plans for one model take together."""
        artifacts: list[int] = []
        steps: dict[str, int] = {}
        for plan in plans:
            sizes = step_bytes(plan, model)
            artifacts.append(sizes[-1] if sizes else stored_bytes(model.architecture, model.schemes, _item(model)))
            steps |= {"+".join(one.key for one in plan.passes[: number + 1]): size for number, size in enumerate(sizes)}
        return cls(artifacts, sum(steps.values()), largest_block(model.architecture))


def check_room(plans: Sequence[Plan], model: Checkpoint | Outline, out: Path) -> None:
    """See that the disk holds what a run leaves, and the memory one block.

    Raises:
        InputError: it does not.
    """
    forecast = Forecast.of(plans, model)
    there = folder_bytes(out) if out.exists() else 0  # of a run that is resumed
    needed, free = sum(forecast.artifact) + forecast.steps - there, shutil.disk_usage(_existing(out)).free
    if needed > free:
        raise InputError(
            f"The run leaves about {size(needed)}, and {size(free)} are free on the disk of {out}.",
            "Free some space, or choose another folder with -o.",
        )
    available = psutil.virtual_memory().available
    if forecast.memory > available:
        raise InputError(
            f"The largest block takes {size(forecast.memory)} of memory, and {size(available)} are free.",
            "Close other programs, or use a machine with more memory.",
        )


def step_bytes(plan: Plan, model: Checkpoint | Outline) -> list[int]:
    """Bytes of the weights that each pass leaves."""
    architecture, schemes = model.architecture, model.schemes
    sizes = []
    for one in plan.passes:
        schemes = one.plan(architecture, schemes)
        architecture = one.reshaped(architecture)
        sizes.append(stored_bytes(architecture, schemes, _item(model)))
    return sizes


def stored_bytes(architecture: Architecture, schemes: Mapping[str, Scheme], item: int) -> int:
    """Bytes of a model whose floats take `item` bytes each; padding and headers left out."""
    shapes = architecture.tensor_shapes()
    return sum(_weight_bytes(shape, schemes.get(name.removesuffix(".weight")), item) for name, shape in shapes.items())


def _weight_bytes(shape: tuple[int, ...], scheme: Scheme | None, item: int) -> int:
    count = prod(shape)
    if scheme is None or len(shape) != 2:
        return count * item
    rank = scheme.rank * sum(shape) * item
    if scheme.type == "low-rank":
        return rank
    groups = count // scheme.group_size if scheme.group_size else shape[0]
    return count * scheme.bits // 8 + groups * SCALE_BYTES + rank


def largest_block(architecture: Architecture) -> int:
    """Bytes of the largest block in float32: a decoder block, the embedding, or the head."""
    sizes: dict[str, int] = {}
    for name, shape in architecture.tensor_shapes().items():
        layer = next((part for part in name.split(".") if part.isdigit()), name)
        sizes[layer] = sizes.get(layer, 0) + 4 * prod(shape)
    return max(sizes.values())


def seconds(plans: Sequence[Plan], model: Checkpoint | Outline) -> tuple[float, float]:
    """From how many to how many seconds a run will take here. Passes that train take longer than is known of them."""
    estimate = sum(map(sum, stage_work(plans, model))) / _operations_per_second()
    return SPREAD[0] * estimate, SPREAD[1] * estimate


def stage_work(plans: Sequence[Plan], model: Checkpoint | Outline) -> list[list[float]]:
    """Operations of each plan's stages: the original, which is measured once, each pass, measuring what it leaves, the
    artifact, and measuring that.
    """
    token = 2.0 * model.architecture.parameters  # operations for one token
    recipe = plans[0].recipe
    judged, timed = _judged(recipe.measure) * token, _timed(recipe.measure) * token
    read = 0 if recipe.calibration is None else recipe.calibration.samples * recipe.calibration.length * token
    found = []
    for number, plan in enumerate(plans):
        passes = [
            work
            for one in plan.passes
            for work in (token + CALIBRATION_READS * read * (one.name in plan.calibrated), token + judged)
        ]
        original = 1.0 if number else token + judged + timed
        runtimes = 1 + len(plan.target.variants) if plan.target.why_not_run() is None else 0
        found.append([original, *passes, token, token + runtimes * (judged + timed)])
    return found


def duration(seconds: float) -> str:
    """A time in words: seconds, minutes or hours."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


def _judged(measure: MeasureSection) -> float:
    """Tokens that a row is judged by, and those that it writes."""
    return QUICK_WINDOWS * measure.length + ALONE * 3 * 32 if measure.is_judged else 0


def _timed(measure: MeasureSection) -> float:
    """Tokens that a row is timed with."""
    timed = measure.latency
    tokens = sum(batch * timed.prompt + ALONE * timed.output for batch in timed.batch)
    return 0 if measure.effort == "none" else tokens * (1 + timed.repeats)


def _operations_per_second() -> float:
    matrix = torch.ones(PROBE, PROBE)
    matrix @ matrix  # the first one starts the threads
    start = time.perf_counter()
    for _ in range(3):
        matrix @ matrix
    return 3 * 2 * PROBE**3 / (time.perf_counter() - start)


def _item(model: Checkpoint | Outline) -> int:
    return model.dtype.itemsize if isinstance(model, Checkpoint) else torch.float32.itemsize


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
