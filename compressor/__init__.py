"""llmc: one compiler from a trained language model to the runtime it ships on.

    import compressor as llmc

    run = llmc.compress("./my-model", target="onnx-int4", calibration="train.jsonl", evaluation="evaluation.txt")

The functions are those of `compressor.api`, imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "ArtifactFolder",
    "CompressedRun",
    "Model",
    "bench_folders",
    "compress",
    "gate_run",
    "inspect_path",
    "list_passes",
    "list_targets",
    "open_artifact",
    "open_model",
    "open_run",
    "score_folder",
    "verify_artifact",
]

if TYPE_CHECKING:
    from compressor.api import (
        ArtifactFolder,
        CompressedRun,
        Model,
        bench_folders,
        compress,
        gate_run,
        inspect_path,
        list_passes,
        list_targets,
        open_artifact,
        open_model,
        open_run,
        score_folder,
        verify_artifact,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    from compressor import api

    return getattr(api, name)
