"""Architectures of llama.cpp: which family each is, what it computes without being told, and its names of tensors.

Source: ggml-org/llama.cpp, src/models (what is computed), gguf-py/gguf/constants.py (names).
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.architecture import Architecture
from compressor.families import HEAD, Modules

TANH_GELU = ("gelu_pytorch_tanh", "gelu_new")  # transformers' names of one function, which ggml computes as GELU


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture by its name in `general.architecture`.

    Attributes:
        family: its `model_type` in transformers.
        activations: names of the function that it computes; the first is what an imported model says.
        says_window: the file says how long the sliding window is.
        window_period: every how many layers one has no window, where the file does not list them; None is an
            architecture that applies it nowhere.
        always_slides: wants a layer with a window.
        softcaps: of attention scores and of logits, which it caps always: with these where the file says nothing.
        wide_scale_layers: at this number of layers, scores are divided by the square root of the width for each
            head; else by that of a head's width.
        rotates_part: of each head, where the file says so.
        is_square: takes heads for as wide together as the hidden size.
        reads_every_bias: of the output and of the MLP too, where there are such tensors.
        unties: reads a head of its own.
    """

    name: str
    family: str
    activations: tuple[str, ...] = ("silu",)
    says_window: bool = False
    window_period: int | None = None
    always_slides: bool = False
    softcaps: tuple[float | None, float | None] = (None, None)
    wide_scale_layers: int | None = None
    rotates_part: bool = False
    is_square: bool = False
    reads_every_bias: bool = False
    unties: bool = True

    def score_width(self, layers: int, hidden_size: int, heads: int, head_dim: int) -> int:
        """The number by whose square root attention scores are divided."""
        return hidden_size // heads if layers == self.wide_scale_layers else head_dim


ARCHITECTURES = {
    row.name: row
    for row in (
        GgufArchitecture("llama", "llama", reads_every_bias=True),
        GgufArchitecture("qwen2", "qwen2", is_square=True),
        GgufArchitecture("qwen3", "qwen3"),
        GgufArchitecture("phi3", "phi3", says_window=True, rotates_part=True, is_square=True),
        GgufArchitecture("gemma2", "gemma2", TANH_GELU, says_window=True, window_period=2, always_slides=True,
                         softcaps=(50.0, 30.0), wide_scale_layers=46, unties=False),
        GgufArchitecture("gemma3", "gemma3_text", TANH_GELU, says_window=True, window_period=6, wide_scale_layers=62),
        GgufArchitecture("gpt2", "gpt2", TANH_GELU[::-1], is_square=True, reads_every_bias=True),
    )
}  # fmt: skip


def gguf_names(architecture: Architecture) -> dict[str, str]:
    """llama.cpp's name of every parameter."""
    modules = architecture.modules
    names = {modules.embedding: "token_embd", modules.norm: "output_norm", HEAD: "output"}
    if modules.positions:
        names[modules.positions] = "position_embd"
    inner = _block_names(modules)
    for index in range(architecture.layers):
        names |= {modules.block(index) + module: f"blk.{index}.{name}" for module, name in inner.items()}
    parts = (parameter.rpartition(".") for parameter in architecture.tensor_shapes())
    return {f"{module}.{kind}": f"{names[module]}.{kind}" for module, _, kind in parts}


def gain_shift(architecture: Architecture, parameter: str) -> float:
    """What a tensor has more than its parameter: a norm's is the gain that features are multiplied by."""
    return architecture.norm_shift if parameter.endswith("norm.weight") else 0.0


def _block_names(modules: Modules) -> dict[str, str]:
    """Modules of a decoder block by their name within it. Gate and up in one linear lie where up alone would."""
    attention, mlp = modules.branches
    names = {f"{attention.body}.{x}_norm": f"attn_{x}_norm" for x in "qk"}
    names |= {attention.norm: "attn_norm", attention.last: "attn_output", mlp.norm: "ffn_norm", mlp.last: "ffn_down"}
    query_key_value = ("attn_q", "attn_k", "attn_v") if len(attention.first) > 1 else ("attn_qkv",)
    names |= zip(attention.first, query_key_value, strict=True)
    names |= zip(mlp.first, ("ffn_gate", "ffn_up")[-len(mlp.first) :], strict=True)
    for branch, name in ((attention, "post_attention_norm"), (mlp, "post_ffw_norm")):
        if branch.post_norm:
            names[branch.post_norm] = name
    return names
