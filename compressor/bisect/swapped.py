"""A checkpoint made of parameters of two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from compressor.checkpoint import Checkpoint, Weight
from compressor.families import HEAD
from compressor.files import digest_json


@dataclass(frozen=True)
class Swapped(Checkpoint):
    """A step in which some parameters are those of the step before. It has no folder of its own.

    Attributes:
        step, before: the two. Whether their parameters fit together is the caller's to know.
        taken: what the names of those start with that are those of `before`, such as `model.layers.0.`.
    """

    step: Checkpoint = field(kw_only=True)
    before: Checkpoint = field(kw_only=True)
    taken: tuple[str, ...] = field(kw_only=True)

    @classmethod
    def of(cls, step: Checkpoint, before: Checkpoint, taken: Sequence[str]) -> Swapped:
        """`step` with what `taken` names of `before`."""
        prefixes = tuple(taken)
        others = {name: scheme for name, scheme in step.schemes.items() if not f"{name}.".startswith(prefixes)}
        same = {name: scheme for name, scheme in before.schemes.items() if f"{name}.".startswith(prefixes)}
        return cls(
            step.root, step.config, step.architecture, step.tensors, others | same, step.kv_cache,
            step=step, before=before, taken=prefixes,
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        return digest_json({"step": self.step.digest, "before": self.before.digest, "taken": sorted(self.taken)})

    @property
    def nbytes(self) -> int:
        return sum(
            info.nbytes
            for source in (self.step, self.before)
            for name, info in source.tensors.items()
            if self._is_taken(name) is (source is self.before)
        )

    def read(self, parameters: list[str]) -> dict[str, Weight]:
        theirs = [name for name in parameters if self._is_taken(name)]
        ours = [name for name in parameters if not self._is_taken(name)]
        return self.step.read(ours) | self._read_before(theirs)

    def _read_before(self, parameters: list[str]) -> dict[str, Weight]:
        """What `before` has of the parameters: scales of a cache may be the step's alone. A head that only the step has
        untied is the embedding of `before`.
        """
        known = self.before.read([name for name in parameters if name in self.before.parameters])
        table, head = f"{self.before.architecture.embedding}.weight", f"{HEAD}.weight"
        if head in parameters and head not in known:
            known[head] = self.before.read([table])[table]
        return known

    def _is_taken(self, name: str) -> bool:
        return name.startswith(self.taken)
