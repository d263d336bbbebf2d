"""Interpreters that are started here: what lies in the current folder is no module of theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

# `python -c` and `python -m` look for modules in the current folder first, which may be a downloaded model's. This does
# what -P does, and what the process starts itself inherits it.
SAFE_PATH = MappingProxyType({"PYTHONSAFEPATH": "1"})


def safe_environment(more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The environment for a process that is or starts an interpreter, with `more` in it."""
    environment = {**os.environ, **more, **SAFE_PATH}
    paths = [path for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path]  # an empty one is the folder
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)} if paths else environment
