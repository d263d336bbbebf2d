"""Merges by this project and by peft, and what tests do to models and adapters."""

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.pass_ import PassContext
from compressor.registry import make_pass


def merge(root, out, **options):
    """The merged checkpoint, and the notes for the ledger."""
    one = make_pass("lora-merge", options)
    checkpoint = Checkpoint.open(root)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    notes = []
    result = one.apply(checkpoint, PassContext(Path(out), {"pass": "lora-merge"}, None, 0, lambda *_: None, notes))
    return result, notes


def weights_of(checkpoint):
    """Every parameter by name."""
    return {name: weight for block in checkpoint.blocks() for name, weight in block.weights.items()}


def merged_by_peft(root, adapters, dtype, weights=None, combination=None, untie=False):
    """Parameters of the model as peft merges it, a copy of the embedding in a tied head if asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            root, dtype=dtype, **({"tie_word_embeddings": False} if untie else {})
        )
        if untie:
            model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
        peft = PeftModel.from_pretrained(model, adapters[0], adapter_name="a0")
        for number, adapter in enumerate(adapters[1:], start=1):
            peft.load_adapter(adapter, adapter_name=f"a{number}")
        if combination is not None:
            peft.add_weighted_adapter([f"a{n}" for n in range(len(adapters))], weights, "all", combination)
            peft.set_adapter("all")
        return {name: tensor.clone() for name, tensor in peft.merge_and_unload().state_dict().items()}


def half(root, dtype=torch.bfloat16):
    """The model folder with its tensors in 16 bits."""
    state = load_file(root / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, root / "model.safetensors", {"format": "pt"})
    config = json.loads((root / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    (root / "config.json").write_text(json.dumps(config))
    return root


def configure(adapter, **changed):
    """Change its adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
