"""Random models of a given shape, streamed to disk: for memory and time, which do not depend on the weights' values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compressor.architecture import resolve
from compressor.files import whole_folder, write_json
from compressor.writer import ShardWriter

VOCABULARY = 32_000
DEVIATION = 0.02  # of the weights, as models are initialized


def llama(layers: int, width: int) -> dict[str, Any]:
    """The config of a Llama with heads of 64, four query heads to a key-value head, and an MLP four times as wide."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 256),
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }


def random_model(folder: Path, config: dict[str, Any]) -> Path:
    """The model's folder, made unless it is there; one tensor in memory at a time."""
    if folder.exists():
        return folder
    generator = torch.Generator().manual_seed(0)
    with whole_folder(folder) as partial:
        writer = ShardWriter(partial)
        for name, shape in resolve(config).tensor_shapes().items():
            tensor = torch.ones(shape, dtype=torch.bfloat16)
            writer.add({name: tensor if "norm" in name else tensor.normal_(std=DEVIATION, generator=generator)})
        writer.finish()
        write_json(partial / "config.json", config)
        _tokenizer().save_pretrained(partial)
    return folder


def random_tokens(samples: int, length: int) -> torch.Tensor:
    """int64 [samples, length]."""
    return torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(0))


def _tokenizer() -> Any:
    """The least that opens as a tokenizer: every tool loads one, none uses it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
