"""The models and engines of runtime.py: what is compared, and how each model is made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from peer import BENCHMARKS, Peer

from compressor.gguf.container import GgufFile
from compressor.source import open_model
from targets.onnx import folder

GENAI = Peer(
    ".venv-genai",
    "genai_peer.py",
    (
        ["torch==2.13.0"],
        ["transformers==5.17.0", "onnx==1.23.2", "onnx-ir==1.1.0", "onnxruntime==1.31.1", "onnxruntime-genai==0.18.0"],
    ),
)
LLAMA = Peer(".venv-llama-cpp-python", "llama_cpp_peer.py")
HUGE_PAGES = dict([folder.HUGE_PAGES.split("=", 1)])  # as the run script of an ONNX artifact sets it
CHANNEL, GROUPS = "gptq:group_size=channel,symmetric=false", "gptq:group_size=64"
INT8_HEAD, INT4_HEAD = "embeddings:group_size=64", "embeddings:bits=4,group_size=32,scale_search=true"
INT4_HEAD_OF_64 = "embeddings:bits=4,group_size=64,scale_search=true"


@dataclass(frozen=True)
class Model:
    """One artifact.

    Attributes:
        maker: "llmc", "genai" (its model builder) or "llama.cpp" (its quantizer).
        options: passes; `--extra_options`; or "pure".
        head: what the head's weights are.
    """

    name: str
    maker: str
    options: tuple[str, ...]
    head: str


MODELS = {
    model.name: model
    for model in (
        Model("llmc-channel", "llmc", (CHANNEL, INT8_HEAD), "int8"),
        Model("llmc-channel-int4-head", "llmc", (CHANNEL, INT4_HEAD), "int4"),
        Model("llmc-g64", "llmc", (GROUPS, INT8_HEAD), "int8"),
        Model("llmc-g64-int4-head", "llmc", (GROUPS, INT4_HEAD_OF_64), "int4"),
        Model("llmc-g64-float-head", "llmc", (GROUPS,), "float32"),
        Model("genai", "genai", (), "int4"),
        Model("genai-int8-head", "genai", ("algo_config=rtn_last",), "int8"),
        Model("q4_0", "llama.cpp", (), "int8"),
        Model("q4_0-pure", "llama.cpp", ("pure",), "int4"),
    )
}


@dataclass(frozen=True)
class Row:
    """One model in one engine.

    Attributes:
        engine: "onnxruntime-genai", "onnxruntime" or "llama.cpp".
        huge_pages: whether the C library asks for them.
    """

    model: Model
    engine: str
    huge_pages: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.engine}{', huge pages' if self.huge_pages else ''}"

    @property
    def environment(self) -> dict[str, str]:
        return HUGE_PAGES if self.huge_pages else {}

    def command(self, artifact: Path, *arguments: object) -> list[str]:
        """The process that takes turns."""
        if self.engine == "onnxruntime":
            script = BENCHMARKS / "peers" / "onnxruntime_peer.py"
            return [str(part) for part in (sys.executable, script, "turns", artifact, *arguments)]
        return peer(self.engine).command("turns", artifact, *arguments)


def peer(engine: str) -> Peer:
    """The environment of an engine."""
    return LLAMA if engine == "llama.cpp" else GENAI


OURS = Row(MODELS["llmc-channel"], "onnxruntime-genai", huge_pages=True)
OURS_PLAIN = Row(MODELS["llmc-channel"], "onnxruntime-genai")
OURS_INT4_HEAD = Row(MODELS["llmc-channel-int4-head"], "onnxruntime-genai", huge_pages=True)
OURS_GROUPS = Row(MODELS["llmc-g64-int4-head"], "onnxruntime-genai", huge_pages=True)
BUILDER = Row(MODELS["genai"], "onnxruntime-genai")
BUILDER_HUGE = Row(MODELS["genai"], "onnxruntime-genai", huge_pages=True)
LLAMA_CPP = Row(MODELS["q4_0"], "llama.cpp")
LLAMA_CPP_HUGE = Row(MODELS["q4_0"], "llama.cpp", huge_pages=True)
ROWS = (
    OURS,
    OURS_PLAIN,
    Row(MODELS["llmc-channel"], "onnxruntime", huge_pages=True),
    OURS_INT4_HEAD,
    Row(MODELS["llmc-g64"], "onnxruntime-genai", huge_pages=True),
    OURS_GROUPS,
    Row(MODELS["llmc-g64-float-head"], "onnxruntime-genai", huge_pages=True),
    BUILDER,
    BUILDER_HUGE,
    Row(MODELS["genai-int8-head"], "onnxruntime-genai"),
    LLAMA_CPP,
    LLAMA_CPP_HUGE,
    Row(MODELS["q4_0-pure"], "llama.cpp"),
)


@dataclass(frozen=True)
class Workshop:
    """Makes what is not there yet, in the folder `out`."""

    gguf: Path
    calibration: str
    out: Path

    @cached_property
    def original(self) -> Path:
        """The GGUF file as a float checkpoint."""
        folder = self.out / "original"
        if not folder.exists():
            open_model(str(self.gguf), folder, progress=lambda *_: None)
        return folder

    def artifact(self, model: Model) -> Path:
        """The model, ready for its engine."""
        path = self.out / (f"{model.name}.gguf" if model.maker == "llama.cpp" else model.name)
        if model.maker == "llmc":
            return self._compressed(model.options, "onnx-int4", path) / "artifact"
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            if model.maker == "genai":
                GENAI.run("build", self.original, partial, *model.options)
            else:
                LLAMA.run("quantize", self.gguf, partial, *(f"--{option}" for option in model.options))
            partial.rename(path)
        return path

    def _compressed(self, passes: Sequence[str], target: str, out: Path) -> Path:
        """The run that lowers to `target`; the first pass is run once for all models that begin with it."""
        first, *others = passes
        source = self.out / first.replace(":", "-")
        if not (source / "artifact").exists():
            words = ["--pass", first, "--calibration", self.calibration, "--samples", "64"]
            self._llmc(self.original, "hf", source, *words)
        if not (out / "artifact").exists():
            words = [word for one in others for word in ("--pass", one)]
            self._llmc(source / "artifact", target, out, *words)
        return out

    @staticmethod
    def _llmc(model: Path, target: str, out: Path, *words: str) -> None:
        llmc = Path(sys.executable).with_name("llmc")
        command = [llmc, "compress", model, "-t", target, "-o", out, "--measure", "none", *words]
        subprocess.run([*map(str, command), *(["--resume"] if out.exists() else [])], check=True, stdout=sys.stderr)


def weight_bytes(model: Model, artifact: Path) -> int:
    """Bytes of weights that one token reads: what it is multiplied by, as the file stores it."""
    if model.maker == "llama.cpp":
        return sum(tensor.nbytes for tensor in GgufFile.open(artifact).tensors.values())
    return _multiplied_bytes(artifact)


def _multiplied_bytes(artifact: Path) -> int:
    import onnx

    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    multiplied = {
        casts.get(name, name)
        for node in graph.node
        if node.op_type in ("MatMulNBits", "FusedMatMul", "MatMul")
        for name in node.input
    }
    entries = (
        {entry.key: entry.value for entry in stored[name].external_data} for name in multiplied if name in stored
    )
    return sum(int(entry["length"]) for entry in entries)


def copy_bandwidth(threads: int) -> float:
    """Bytes a second that numpy copies move, reads and writes counted, over arrays beyond any cache."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    pairs = [(np.ones(1 << 27, np.uint8), np.zeros(1 << 27, np.uint8)) for _ in range(threads)]

    def copy_all(pool: ThreadPoolExecutor) -> float:
        start = time.perf_counter()
        list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        fastest = min(copy_all(pool) for _ in range(10))
    return 2 * threads * (1 << 27) / fastest
