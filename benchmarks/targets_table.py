"""Writes the table of docs/targets.md: what each target takes, who reads it back, and what it was tested with.

    python benchmarks/targets_table.py

What a target takes is found by asking it, scheme by scheme, what stands in the way; the rest is in docs/targets.yaml
and in benchmarks/results/engines.json. docs/zh/targets.md gets the same table in the words of docs/targets.zh.yaml.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import yaml

from compressor.architecture import Architecture, resolve
from compressor.quantized import Activations, Scheme
from compressor.registry import TARGETS
from compressor.target import Target

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTES = ROOT / "docs" / "targets.md", ROOT / "docs" / "targets.yaml"
CHINESE_PAGE, WORDS = ROOT / "docs" / "zh" / "targets.md", ROOT / "docs" / "targets.zh.yaml"
ENGINES = ROOT / "benchmarks" / "results" / "engines.json"
START, END = "<!-- table: python benchmarks/targets_table.py -->\n", "<!-- end of table -->\n"
HEADERS = ("target", "writes", "takes", "read back by", "tested with", "not tested")
GROUPS = (16, 32, 64, 128, None)
# A Llama in which every group size fits every width.
SHAPE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2048,
         "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
         "vocab_size": 1024, "tie_word_embeddings": False}  # fmt: skip
FP8 = Scheme(8, None, type="float")
INPUTS = {"dynamic": True, "static": False}
SINGLE = {
    "NVFP4 weights": Scheme(4, 16, type="float"),
    "NVFP4 with inputs in NVFP4": Scheme(4, 16, type="float", activations=Activations(4, "float")),
    "NF4": Scheme(4, 64, type="nf4"),
}


def main() -> int:
    english = list(lines())
    for page, table in ((PAGE, english), (CHINESE_PAGE, in_chinese(english))):
        page.write_text(with_table(page.read_text(), table))
    return 0


def with_table(text: str, table: Iterable[str]) -> str:
    """The page with this table in the place of its own."""
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: START + "\n".join(table) + "\n" + END, text)


def in_chinese(table: Iterable[str]) -> list[str]:
    """The table with the words of docs/targets.zh.yaml in the place of the English ones; the longest phrase counts."""
    words = yaml.safe_load(WORDS.read_text())
    phrase = re.compile("|".join(re.escape(english) for english in sorted(words, key=len, reverse=True)))
    return [phrase.sub(lambda found: words[found[0]], line) for line in table]


def lines() -> Iterator[str]:
    notes, seen = yaml.safe_load(NOTES.read_text()), loaded()
    yield f"| {' | '.join(HEADERS)} |"
    yield "|---" * len(HEADERS) + "|"
    classes = own_targets()
    for name in [*(name for name in notes if name in classes), *(name for name in classes if name not in notes)]:
        target, said = classes[name](), notes.get(name, {})
        here = "; ".join([said.get("loaded", "nothing"), *seen.get(name, ())])
        cells = (f"`{name}`", said.get("writes", target.summary), takes(target), target.reader, here)
        yield f"| {' | '.join(cells)} | {said.get('not_run', '')} |"


def own_targets() -> dict[str, Any]:
    """The targets of this checkout, and no plug-in's."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][TARGETS]
    return {name: EntryPoint(name, value, TARGETS).load() for name, value in declared.items()}


def loaded() -> dict[str, list[str]]:
    """What the benchmark of runtimes saw, by target: runtimes that agreed, each once."""
    found: dict[str, list[str]] = {}
    rows = json.loads(ENGINES.read_text())["rows"] if ENGINES.is_file() else {}
    for case, runtimes in rows.items():
        known = found.setdefault(case.partition(" ")[0], [])
        for row in runtimes:
            name = row["runtime"].partition(",")[0]
            if row["verdict"] == "agrees" and not name.startswith(("onnxruntime", "transformers")):
                entry = f"{name} ([a real model](../benchmarks/results/engines.md))"
                known += [] if entry in known else [entry]
    return found


# ---- what a target takes, by asking it


def takes(target: Target) -> str:
    """In words, for a Llama's linears: all of one scheme, then what may be beside it."""
    shape = resolve(SHAPE)
    found = [*integers(target, shape), *rounded_inputs(target, shape)]
    found += [text for text, scheme in SINGLE.items() if fits(target, shape, scheme)]
    if not target.problems(shape, {}):
        found.insert(0, "float models" if found else "float models only")
    return "; ".join([*found, *beside(target, shape)])


def fits(target: Target, shape: Architecture, scheme: Scheme, **others: Scheme) -> bool:
    inner = {name: scheme for name in shape.linears() if name != "lm_head"}
    return not present(target).problems(shape, inner | others)


def present(target: Target) -> Target:
    """The target, as if all packages were installed: what is missing here changes nothing of what it can express."""
    module = sys.modules[type(target).__module__]
    if hasattr(module, "find_spec"):
        module.find_spec = lambda name: name
    return target


def integers(target: Target, shape: Architecture) -> Iterator[str]:
    for bits in (4, 8):
        taken = {
            symmetric: [size for size in GROUPS if fits(target, shape, Scheme(bits, size, symmetric))]
            for symmetric in (True, False)
        }
        if not taken[True] and not taken[False]:
            continue
        balance = "symmetric or not" if taken[False] else "symmetric"
        sizes = [str(size) for size in taken[True] if size]
        groups = f"groups of {', '.join(sizes)}" if sizes else ""
        whole = "per channel" if None in taken[True] else ""
        yield f"int{bits}, {balance}, {' or '.join(filter(None, [groups, whole]))}"


def rounded_inputs(target: Target, shape: Architecture) -> Iterator[str]:
    """Eight-bit weights whose inputs are rounded too, and fp8 weights alone."""
    for text, weights, kind in (
        ("int8 per channel", Scheme(8, None), "int"),
        ("fp8 per channel", FP8, "float"),
        ("fp8 per tensor", Scheme(8, None, type="float", per_tensor=True), "float"),
    ):
        inputs = {"alone": None, **{name: Activations(8, kind, dynamic) for name, dynamic in INPUTS.items()}}
        taken = [
            name
            for name, activations in inputs.items()
            if (name != "alone" or kind == "float")
            and fits(target, shape, Scheme(8, None, True, weights.type, activations, per_tensor=weights.per_tensor))
        ]
        if taken:
            yield f"{text}, inputs {' or '.join('unquantized' if name == 'alone' else name for name in taken)}"


def beside(target: Target, shape: Architecture) -> Iterator[str]:
    """What may be beside the first scheme that is taken: other layers, a quantized head and embedding, an fp8 cache."""
    plain = [Scheme(4, 64), Scheme(8, None), FP8]
    own = next((scheme for scheme in plain if fits(target, shape, scheme)), None)
    if own is not None:
        one = {"model.layers.0.mlp.down_proj": None}
        others = [
            scheme.kind for scheme in plain if scheme != own and fits(target, shape, own, **dict.fromkeys(one, scheme))
        ]
        if others:
            yield f"some layers may be {' or '.join(others)}"
        if fits(target, shape, own, lm_head=own):
            yield "`lm_head` too"
        if "input_factors" in target.holds:
            yield factors(target, shape, own)
    if "rank" in target.holds:
        yield f"low-rank factors {'in place of linears' if own is None else 'beside the weights'}"
    if target.holds_quantized_embedding:
        yield "a quantized embedding"
    if target.holds_cache_scales:
        yield "scales of an fp8 cache"


def factors(target: Target, shape: Architecture, own: Scheme) -> str:
    """Which layers may have factors of their inputs, which ModelOpt calls pre_quant_scale."""
    multiplied = replace(own, input_factors=True)
    layers = [name for name in shape.linears() if name != "lm_head"]
    taken = [name for name in layers if fits(target, shape, own, **{name: multiplied})]
    names = " and ".join(f"`{name.rpartition('.')[2]}`" for name in taken)
    return "input scales (`pre_quant_scale`)" + ("" if taken == layers else f" of {names}")


if __name__ == "__main__":
    sys.exit(main())
