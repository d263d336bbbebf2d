"""The loader model for int8, fp8, mixed precision and cache scales: each rule fires on a folder damaged for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.quantized import FP8 as E4M3
from compressor.quantized import Activations, Scheme
from targets.tensorrt_llm import TrtFp8, TrtInt4, TrtInt8, check_loadable

ATTENTION, Q, V = (f"model.layers.0.self_attn{part}" for part in ("", ".q_proj", ".v_proj"))
DOWN, GATE, UP = (f"model.layers.0.mlp.{part}_proj" for part in ("down", "gate", "up"))
FP8 = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
ROWWISE = Scheme(8, None, type="float", activations=Activations(8, "float"))

Damage = Callable[[Path], None]


@pytest.fixture
def sound(tiny_model, quantize, lower, made, tmp_path) -> Callable[[str], Path]:
    """`sound(kind)`: a sound folder of int8, fp8 with a cache, fp8 rowwise, or mixed, for each test to damage."""

    def make(kind: str) -> Path:
        if kind not in made:
            root = tiny_model("llama", tied=False)
            target, checkpoint = {
                "int8": lambda: (TrtInt8(), quantize(root, Scheme(8, None))),
                "fp8": lambda: (TrtFp8(), quantize(root, FP8, kv_cache=True)),
                "rowwise": lambda: (TrtFp8(), quantize(root, ROWWISE)),
                "mixed": lambda: (TrtInt4(), quantize(root, Scheme(4, 64), {"mlp.down_proj": Scheme(8, None)})),
            }[kind]()
            made[kind] = lower(target, checkpoint)[0].root
        return shutil.copytree(made[kind], tmp_path / "copy")

    return make


def put(name: str, tensor: torch.Tensor | None) -> Damage:
    """Replace a tensor; None takes it out."""

    def damage(root: Path) -> None:
        found = load_file(root / "model.safetensors")
        found.pop(name, None)
        save_file(found | ({} if tensor is None else {name: tensor}), root / "model.safetensors")

    return damage


def say(**values: object) -> Damage:
    """Replace settings of hf_quant_config.json."""
    return lambda root: settings(root, lambda quantization: quantization.update(values))


def say_of(layer: str, **values: object) -> Damage:
    """Replace settings of one layer; none takes it out of the list."""

    def edit(quantization: dict) -> None:
        if values:
            quantization["quantized_layers"].setdefault(layer, {}).update(values)
        else:
            del quantization["quantized_layers"][layer]

    return lambda root: settings(root, edit)


def settings(root: Path, edit: Callable[[dict], object]) -> None:
    whole = json.loads((root / "hf_quant_config.json").read_text())
    edit(whole["quantization"])
    (root / "hf_quant_config.json").write_text(json.dumps(whole))


ONE = torch.tensor(1.0)
DAMAGES = {
    "int8: no scale": ("int8", put(f"{Q}.weight_scale", None), f"{Q}.weight_scale is missing"),
    "int8: groups": (
        "int8",
        put(f"{Q}.weight_scale", torch.ones(64, 2)),
        f"{Q}.weight_scale has shape [64, 2]; the loader wants [64]",
    ),
    "int8: unsigned": (
        "int8",
        put(f"{Q}.weight", torch.zeros(64, 64, dtype=torch.uint8)),
        f"{Q}.weight is stored as U8; the loader wants I8",
    ),
    "int8: packed": (
        "int8",
        put(f"{Q}.weight", torch.zeros(32, 64, dtype=torch.int8)),
        f"{Q}.weight has shape [32, 64]; the loader wants [64, 64]",
    ),
    "int8: scale overflows": (
        "int8",
        put(f"{Q}.weight_scale", torch.full((64,), 3.4e38)),
        f"{Q}.weight_scale holds a value that bfloat16 does not",
    ),
    "int8: activation scale": (
        "int8",
        put(f"{DOWN}.pre_quant_scale", torch.ones(128, dtype=torch.bfloat16)),
        f"{DOWN}.pre_quant_scale is never read",
    ),
    "int8: said to be int4": ("int8", say(quant_algo="W4A16_AWQ", group_size=64), "the loader wants [32, 64]"),
    "int8: an algorithm of other backends": ("int8", say(quant_algo="W8A8_SQ_PER_CHANNEL"), "W8A8_SQ_PER_CHANNEL, not"),
    "int8: cache scales": (
        "int8",
        put(f"{ATTENTION}.k_proj.k_scale", ONE),
        "is never read, since the layer is neither FP8 nor NVFP4",
    ),
    "fp8: no input scale": ("fp8", put(f"{DOWN}.input_scale", None), f"{DOWN}.input_scale is missing"),
    "fp8: a scale a channel": (
        "fp8",
        put(f"{DOWN}.weight_scale", torch.ones(64)),
        f"{DOWN}.weight_scale has shape [64]; the loader wants []",
    ),
    "fp8: bfloat16 weight": (
        "fp8",
        put(f"{DOWN}.weight", torch.zeros(64, 128, dtype=torch.bfloat16)),
        f"{DOWN}.weight is stored as BF16; the loader wants F8_E4M3",
    ),
    "fp8: unequal weight scales": (
        "fp8",
        put(f"{V}.weight_scale", ONE),
        f"{Q}.weight_scale: q_proj/k_proj/v_proj differ; the loader takes the largest and rounds the others again",
    ),
    "fp8: unequal input scales": (
        "fp8",
        put(f"{UP}.input_scale", ONE),
        f"{GATE}.input_scale: gate_proj/up_proj differ",
    ),
    "fp8: scale is not finite": (
        "fp8",
        put(f"{DOWN}.input_scale", ONE / 0),
        f"{DOWN}.input_scale holds a value that float32 does not",
    ),
    "fp8: one cache scale": ("fp8", put(f"{V}.v_scale", None), f"{V}.v_scale is missing"),
    "fp8: cache scale a head": ("fp8", put(f"{V}.v_scale", torch.ones(2)), f"{V}.v_scale has shape [2]"),
    "fp8: cache scale beside the attention": (
        "fp8",
        put(f"{ATTENTION}.k_scale", ONE),
        f"{ATTENTION}.k_scale is never read",
    ),
    "rowwise: one scale": (
        "rowwise",
        put(f"{Q}.weight_scale", ONE),
        f"{Q}.weight_scale has shape []; the loader wants [64]",
    ),
    "rowwise: scales as a column": ("rowwise", put(f"{Q}.weight_scale", torch.ones(64, 1)), "the loader wants [64]"),
    "rowwise: input scale": ("rowwise", put(f"{Q}.input_scale", ONE), f"{Q}.input_scale is never read"),
    "rowwise: cache scales": (
        "rowwise",
        put(f"{ATTENTION}.k_proj.k_scale", ONE),
        "k_scale is never read, since the layer is neither FP8 nor NVFP4",
    ),
    "mixed: nothing listed": ("mixed", say(quantized_layers={}), "quantized_layers lists none"),
    "mixed: no such layer": ("mixed", say_of("model.layers.0.mlp.fc", quant_algo="FP8"), "lists model.layers.0.mlp.fc"),
    "mixed: the head": ("mixed", say_of("lm_head", quant_algo="FP8"), "lists lm_head, which is no linear that"),
    "mixed: not listed": ("mixed", say_of(DOWN), f"{DOWN}.weight is stored as I8; the loader wants BF16"),
    "mixed: other than the first": (
        "mixed",
        say_of(V, group_size=128),
        f"quantized_layers says otherwise of {V} than of {Q}, which decides for both",
    ),
    "mixed: group size": ("mixed", say_of(Q, group_size=32), f"group_size of {Q} is 32; the kernels take 64 and 128"),
    "mixed: algorithm": ("mixed", say_of(DOWN, quant_algo="INT8"), f"quant_algo of {DOWN} is INT8, not one of"),
    "mixed: zero points": ("mixed", say_of(Q, has_zero_point=True), f"has_zero_point of {Q} is true"),
    "mixed: excluded too": ("mixed", say(exclude_modules=["lm_head", DOWN]), f"{DOWN}.weight is stored as I8"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_rule_fires(sound, name):
    kind, damage, sentence = DAMAGES[name]
    folder = sound(kind)
    assert check_loadable(folder) == []
    damage(folder)
    broken = check_loadable(folder)
    assert any(sentence in one for one in broken), broken


def test_scalars_may_have_one_dimension(sound):
    folder = sound("fp8")
    found = load_file(folder / "model.safetensors")
    save_file({name: t.reshape(1) if t.dim() == 0 else t for name, t in found.items()}, folder / "model.safetensors")
    assert check_loadable(folder) == []


def test_cache_scales_need_not_be_there(sound):
    folder = sound("fp8")
    found = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in found.items() if not name.endswith(("k_scale", "v_scale"))}
    assert len(kept) == len(found) - 4
    save_file(kept, folder / "model.safetensors")
    assert check_loadable(folder) == []


def test_fusing_in_float16(sound):
    folder = sound("fp8")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16", "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    found = load_file(folder / "model.safetensors")
    halved = {name: t.half() if t.dtype == torch.bfloat16 else t for name, t in found.items()}
    save_file(halved, folder / "model.safetensors")
    assert check_loadable(folder) == []
    tiny = {name: torch.tensor(2.0**-15) for name in halved if name.endswith("weight_scale")}
    save_file(halved | tiny, folder / "model.safetensors")
    assert check_loadable(folder) == [
        f"model.layers.{i}.{group}.weight_scale is 3.05e-05; fusing rounds in float16, which loses bits there."
        for i in range(2)
        for group in ("self_attn.q_proj", "mlp.gate_proj")
    ]


@pytest.mark.parametrize(("kind", "tp_size", "loads"), [("fp8", 2, True), ("rowwise", 2, True), ("int8", 2, False)])
def test_shares_of_several_gpus(sound, kind, tp_size, loads):
    assert (check_loadable(sound(kind), tp_size) == []) == loads  # int8 wants 64 inputs a GPU, fp8 16


def test_e4m3_is_read_by_its_bits(sound):
    folder = sound("fp8")
    weight = load_file(folder / "model.safetensors")[f"{DOWN}.weight"]
    assert weight.dtype == E4M3
    put(f"{DOWN}.weight", weight.view(torch.uint8))(folder)
    assert f"{DOWN}.weight is stored as U8; the loader wants F8_E4M3." in check_loadable(folder)
