"""Every reader of files that come from elsewhere, on small valid files that were changed at random.

Whatever a file holds, the reader takes it or says in one sentence why not: nothing but InputError comes out.
"""

import json
import math
import random
import shutil
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx as onnx_package
import pyarrow
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from calibration.sources import open_corpus
from compressor.adapter.folder import open_adapter
from compressor.architecture import read_config, resolve
from compressor.checkpoint import Checkpoint
from compressor.end_tokens import EndTokens
from compressor.errors import InputError
from compressor.files import digest_file, digest_json, json_text
from compressor.gguf.config import build_config
from compressor.gguf.container import GgufFile
from compressor.gguf.tokenizer import build_tokenizer
from compressor.ledger import Ledger, SamplesRecord, StepRecord, TextRecord, load_ledger
from compressor.manifest import MANIFEST, FileRecord, Manifest, TensorRecord, read_manifest
from compressor.measure.samples import COLUMNS
from compressor.measure.samples import read as read_samples
from compressor.pass_ import PassContext
from compressor.recipe import load_recipes
from compressor.shards import read_headers
from compressor.tasks.task import load_task
from compressor.templates import render_chat
from compressor.tokenizer import default_template, encode_once, load_tokenizer
from passes.rtn import RTN
from targets.gguf.target import GgufQ8
from targets.onnx.qdq.reader import read_weights as read_qdq_weights
from targets.onnx.qdq.target import OnnxQdqInt4
from targets.onnx.reader import read_weights
from targets.onnx.target import OnnxFp32, OnnxInt4

LIMIT_S = 2  # of processor time
LIMIT_BYTES = 500 << 20  # beyond what the process has
FAST, SLOW = 25, 910  # mutations of each reader
ASKED = [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "3"}]
ODD = (
    None, True, -1, 0, 1, 3, 7.5, 2**31, 2**63, 1e308, math.nan, math.inf, "", "a", "../a", "\x1b[31m\n", [], [None],
    {}, {"a": {}}, [[[]]], [1, "a"], 0.5, -(2**40), "float16",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """`file` of a folder is changed, as bytes or as the `values` in it, and `read` is given the folder."""

    name: str
    file: str
    read: object
    values: object = None  # the module that loads and dumps them, or the function that changes them


def config(root):
    resolve(read_config(root))


def index(root):
    read_headers(root)


def shard(root):
    checkpoint = Checkpoint.open(root)
    checkpoint.block("layers.0")


def gguf(root):
    file = GgufFile.open(root / "model.gguf")
    resolve(build_config(file))
    build_tokenizer(file)


def adapter(root):
    opened = open_adapter(str(root))
    for module in opened.modules:
        opened.scaling(module)


def recipe(root):
    for one in load_recipes(root / "recipe.yaml", {}):
        one.build_passes()
        one.build_target()


def task(root):
    load_task(root / "task.yaml")


def text(root):
    list(open_corpus(str(root / "text.parquet"), None).documents(1000))


def ledger(root):
    load_ledger(root)


def manifest(root):
    read_manifest(root)


def onnx(root):
    list(read_weights(root))


def qdq(root):
    list(read_qdq_weights(root))


def tokenizer(root):
    opened = load_tokenizer(root)
    default_template(opened)
    encode_once(opened, "some text")
    if opened.chat_template:
        render_chat(opened, [{"role": "user", "content": "hi"}], "a:1")


def ends(root):
    tokens = SimpleNamespace(
        eos_token_id=3, eos_token="</s>", chat_template=None, convert_ids_to_tokens=lambda ids: list(map(str, ids))
    )
    EndTokens.of(root, tokens).notes(tokens)


def lines(root):
    list(open_corpus(str(root / "text.jsonl"), load_tokenizer(root)).documents(1000))


def samples(root):
    path = root / "samples.parquet"
    read_samples(root, SamplesRecord(path.name, digest_file(path), 60))


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return tmp_path_factory.mktemp("originals")


@pytest.fixture
def folder(originals, tiny_model, adapter_of):
    """`folder(name)`: the valid files of a reader, made once."""
    made = {
        "config": lambda out: shutil.copytree(tiny_model("llama"), out),
        "index": lambda out: _sharded(tiny_model("llama"), out),
        "shard": lambda out: _sharded(tiny_model("llama"), out),
        "gguf": lambda out: _lowered(GgufQ8(), tiny_model("llama"), out),
        "onnx": lambda out: _lowered(OnnxFp32(), tiny_model("llama"), out),
        "onnx-int4": lambda out: _lowered(OnnxInt4(), _rounded(tiny_model("llama"), originals), out),
        "qdq": lambda out: _lowered(OnnxQdqInt4(), _rounded(tiny_model("llama"), originals), out),
        "tokenizer settings": lambda out: shutil.copytree(tiny_model("llama"), out),
        "template": lambda out: shutil.copytree(tiny_model("llama"), out),
        "generation": lambda out: shutil.copytree(tiny_model("llama"), out),
        "lines": lambda out: _lines(tiny_model("llama"), out),
        "adapter": lambda out: shutil.copytree(_lora(tiny_model, adapter_of), out),
    }

    def get(name):
        out = originals / name
        if not out.exists():
            if name in made:
                made[name](out)
            else:
                out.mkdir()
                WRITTEN[name](out)
        return out

    return get


def _lowered(target, root, out):
    out.mkdir()
    target.lower(Checkpoint.open(root), out, lambda *_: None)


def _rounded(root, originals):
    out = originals / "rounded"
    if not out.exists():
        checkpoint = Checkpoint.open(root)
        RTN(group_size=32).apply(checkpoint, PassContext(out, {}, None, 0, lambda *_: None, []))
    return out


def _lines(root, out):
    shutil.copytree(root, out)
    records = [{"text": "one"}, {"messages": ASKED}, {"instruction": "add", "input": "1 and 2", "output": "3"}]
    (out / "text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _samples(out):
    numbers = np.arange(60, dtype=np.int32)
    columns = dict.fromkeys(COLUMNS, numbers)
    parquet.write_table(pyarrow.table(columns), out / "samples.parquet")


def _lora(tiny_model, adapter_of):
    kinds = {"rank_pattern": {"layers.0.*": 4}, "alpha_pattern": {"layers.1": 2}}
    return adapter_of(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **kinds))


def _sharded(root, out):
    shutil.copytree(root, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, out / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _recipe(out):
    values = {
        "model": "m", "adapter": ["./lora", {"./style": 0.5}], "calibration": {"texts": "t.txt", "samples": 8},
        "passes": ["rotate", {"gptq": {"bits": 4, "group_size": 32}}], "target": {"onnx-int4": {"accuracy_level": 0}},
        "measure": {"texts": "e.txt", "effort": "full", "latency": {"batch": [1, 4]}}, "seed": 1,
        "gate": {"max_kl": 0.1},
    }  # fmt: skip
    (out / "recipe.yaml").write_text(yaml.safe_dump(values))


def _task(out):
    lines = [{"q": "what?", "a": ["b", "c"]}, {"q": "who?", "a": ["d"]}]
    (out / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "task": "t",
        "kind": "generation",
        "data": "data.jsonl",
        "prompt": "{{ q }}",
        "answer": "a",
        "stop": ["."],
    }
    (out / "task.yaml").write_text(yaml.safe_dump(values))


def _text(out):
    table = pyarrow.table({"text": ["one document", "another", None] * 20, "n": np.arange(60)})
    parquet.write_table(table, out / "text.parquet")


def _ledger(out):
    row = StepRecord("original", key="k", size_bytes=5, samples=SamplesRecord("samples/a.parquet", "0", 4))
    texts = {"evaluation": TextRecord("t.txt", 2, 16, "d")}
    Ledger("m", {"model": "m", "target": "hf"}, texts=texts, steps=[row]).save(out)


def _manifest(out):
    files = {"model.safetensors": FileRecord(4, "0" * 64)}
    tensors = {"model.safetensors": {"a": TensorRecord(0, 4, 7)}}
    Manifest("hf", {}, "k", "i", {"a": "int4"}, files, tensors, None, None, "not run").write(out)


WRITTEN = {
    "recipe": _recipe,
    "task": _task,
    "text": _text,
    "ledger": _ledger,
    "manifest": _manifest,
    "samples": _samples,
}


# ---- changes


def change_bytes(content, draw):
    """Some bytes of a file changed, taken out, doubled, or all behind a place cut off."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if not content:
            break
        # Headers stand at the beginning and at the end.
        span = draw.choice((16, 256, len(content), len(content)))
        place = draw.randrange(min(span, len(content)))
        place = len(content) - 1 - place if draw.random() < 0.3 else place
        length = draw.choice((1, 1, 4, 8, 100))
        kind = draw.choice(["flip", "set", "fill", "out", "twice", "cut"])
        if kind == "flip":
            content[place] ^= 1 << draw.randrange(8)
        elif kind == "set":
            content[place] = draw.randrange(256)
        elif kind == "fill":
            content[place : place + length] = bytes([draw.choice((0, 255, 127, 32))]) * length
        elif kind == "out":
            del content[place : place + length]
        elif kind == "twice":
            content[place:place] = content[place : place + length]
        elif draw.random() < 0.3:
            del content[place:]
    return bytes(content)


def change_values(value, draw):
    """One value somewhere in it replaced, renamed or left out."""
    places = list(_places(value, ()))
    if not places:
        return draw.choice(ODD)
    *path, last = draw.choice(places)
    holder = value
    for key in path:
        holder = holder[key]
    kind = draw.random()
    if kind < 0.7:
        holder[last] = draw.choice(ODD)
    elif kind < 0.85 and isinstance(holder, dict):
        holder[draw.choice(("", "a", "../b", "\x1b"))] = holder.pop(last)
    else:
        del holder[last]
    return value


def _places(value, path):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield (*path, key)
        yield from _places(item, (*path, key))


def change_graph(content, draw):
    """A node or a stored tensor of an ONNX graph changed."""
    model = onnx_package.ModelProto.FromString(content)
    node, tensor = draw.choice(model.graph.node), draw.choice(model.graph.initializer)
    kind = draw.choice(["input", "less", "op", "output", "attribute", "dims", "type", "place", "gone"])
    if kind == "input" and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(("", "nothing", tensor.name))
    elif kind == "less" and node.input:
        del node.input[draw.randrange(len(node.input)) :]
    elif kind == "op":
        node.op_type = draw.choice(("Cast", "MatMulNBits", "Gather", "GatherBlockQuantized", "FusedMatMul", "Mul"))
    elif kind == "output":
        del node.output[:]
    elif kind == "attribute":
        del node.attribute[:]
    elif kind == "dims":
        tensor.dims.append(draw.choice((0, 1, -1, 2**40)))
    elif kind == "type":
        tensor.data_type = draw.choice((0, 2, 7, 16, 21, 99))
    elif kind == "place" and tensor.external_data:
        draw.choice(tensor.external_data).value = draw.choice(("", "0", "1", "-1", "x", str(2**63)))
    elif kind == "gone":
        model.graph.initializer.remove(tensor)
    return model.SerializeToString()


def changed(reader, content, seed):
    draw = random.Random(seed)
    if reader.values is None or draw.random() < 0.4:
        return change_bytes(content, draw)
    if reader.values is change_graph:
        return change_graph(content, draw)
    if reader.values is json:
        value = json.loads(content)
        for _ in range(draw.choice((1, 1, 2, 3))):
            value = change_values(value, draw)
        if isinstance(value, dict):
            _reseal(value)
        return json_text(value).encode()
    return yaml.safe_dump(change_values(yaml.safe_load(content), draw)).encode()


def _reseal(value):
    """A forger has the digest fit again."""
    if "digest" in value:
        value.pop("digest")
        value["digest"] = digest_json(value)


READERS = [
    Reader("config", "config.json", config, json),
    Reader("index", "model.safetensors.index.json", index, json),
    Reader("shard", "model-1.safetensors", shard),
    Reader("gguf", "model.gguf", gguf),
    Reader("adapter", "adapter_config.json", adapter, json),
    Reader("recipe", "recipe.yaml", recipe, yaml),
    Reader("task", "task.yaml", task, yaml),
    Reader("text", "text.parquet", text),
    Reader("ledger", "ledger.json", ledger, json),
    Reader("manifest", MANIFEST, manifest, json),
    Reader("onnx", "model.onnx", onnx, change_graph),
    Reader("onnx-int4", "model.onnx", onnx, change_graph),
    Reader("qdq", "model.onnx", qdq, change_graph),
    Reader("tokenizer settings", "tokenizer_config.json", tokenizer, json),
    Reader("template", "chat_template.jinja", tokenizer),
    Reader("generation", "generation_config.json", ends, json),
    Reader("lines", "text.jsonl", lines),
    Reader("samples", "samples.parquet", samples),
]


@contextmanager
def within(seconds):
    def stop(*_):
        raise AssertionError(f"It took more than {seconds} s.")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def with_room_for(size):
    """Have the operating system refuse what a reader takes beyond so many bytes, where it can."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(reader, original, place, seed):
    """Read what a seed makes of the original files."""
    content = changed(reader, (original / reader.file).read_bytes(), seed)
    (place / reader.file).write_bytes(content)
    with warnings.catch_warnings(), within(LIMIT_S), with_room_for(LIMIT_BYTES):
        warnings.simplefilter("ignore")
        try:
            reader.read(place)
        except InputError as error:
            assert str(error).strip()
    return content


def run(reader, original, place, count):
    shutil.copytree(original, place)

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.integers(0, 2**32))
    def mutated(seed):
        check(reader, original, place, seed)

    mutated()


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="a reader that hangs could not be stopped")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_only_input_errors_come_out(reader, folder, tmp_path):
    original = folder(reader.name)
    reader.read(original)
    run(reader, original, tmp_path / "place", FAST)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="a reader that hangs could not be stopped")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_only_input_errors_come_out_of_many(reader, folder, tmp_path):
    run(reader, folder(reader.name), tmp_path / "place", SLOW)
