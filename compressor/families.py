"""Decoder families as rows of traits. Adding one whose differences are already named here is one row in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from compressor.errors import InputError

HEAD = "lm_head"
COMPILED = "_orig_mod."  # torch.compile puts it before what it compiled, a model or each of its blocks
# What a model is called in one that holds it: by DistributedDataParallel, and of images and text, in both spellings.
WRAPPERS = ("module.", "model.language_model.", "language_model.")
CACHE_SCALES = ("k_scale", "v_scale")  # of an fp8 key-value cache, [1] each, in the attention module

Norm = Literal["rms", "layer"]


@dataclass(frozen=True)
class Branch:
    """One residual branch of a decoder block: hidden += post_norm(last(inner(first(norm(hidden))))).

    Names are those within the block, and shared with transformers.

    Attributes:
        body: the module that computes it, which holds the linears.
        first: linears that read the norm's output; several, or one in which they are stacked along the output features.
        last: the linear that writes to the residual stream, through `post_norm` where the family has one.
    """

    norm: str
    body: str
    first: tuple[str, ...]
    last: str
    post_norm: str | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        return (self.norm,) if self.post_norm is None else (self.norm, self.post_norm)


@dataclass(frozen=True)
class Modules:
    """What a family calls its modules. `lm_head` is the same everywhere."""

    embedding: str = "model.embed_tokens"
    positions: str | None = None  # a learned table; None is a rotary embedding
    blocks: str = "model.layers"
    attention: Branch = Branch(
        "input_layernorm", "self_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
    )
    mlp: Branch = Branch("post_attention_layernorm", "mlp", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    norm: str = "model.norm"

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """Both branches of a decoder block in forward order."""
        return self.attention, self.mlp

    def block(self, index: int) -> str:
        """Prefix of the names in decoder block `index`."""
        return f"{self.blocks}.{index}."

    def prefixes(self, block: str) -> tuple[str, ...]:
        """What names in a unit of streaming start with: `embedding`, `layers.0` and so on, `head`."""
        if block == "embedding":
            return (f"{self.embedding}.", f"{self.positions}.")
        if block == "head":
            return (f"{self.norm}.", f"{HEAD}.")
        return (self.block(int(block.removeprefix("layers."))),)


LLAMA = Modules()
GEMMA = Modules(
    attention=replace(LLAMA.attention, post_norm="post_attention_layernorm"),
    mlp=replace(LLAMA.mlp, norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
)
PHI = Modules(
    attention=replace(LLAMA.attention, first=("self_attn.qkv_proj",)),
    mlp=replace(LLAMA.mlp, first=("mlp.gate_up_proj",)),
)
GPT2 = Modules(
    embedding="transformer.wte",
    positions="transformer.wpe",
    blocks="transformer.h",
    attention=Branch("ln_1", "attn", ("attn.c_attn",), "attn.c_proj"),
    mlp=Branch("ln_2", "mlp", ("mlp.c_fc",), "mlp.c_proj"),
    norm="transformer.ln_f",
)


@dataclass(frozen=True)
class Family:
    """What sets one decoder family apart from the common pre-norm, gated-MLP, rotary shape.

    A trait that is a string names the key of config.json that decides it.

    Attributes:
        window: "all": every layer has config.sliding_window; "layer_types": the config lists them.
        norm: RMS norms, or layer norms, which have a bias.
        norm_shift: what is added to a norm's weight to make its gain.
        gated: the MLP multiplies by a second linear's outputs.
        transposed: weights of linears in the blocks are stored [in_features, out_features] (transformers' Conv1D).
        scaled_embedding: embeddings are multiplied by the square root of the width.
        score_scale: attention scores are divided by the square root of this setting; None is the head's width.
        rotary_by_layer_type: `rope_parameters` has an entry for each kind of layer.
        optional_prefix: what checkpoints may leave out at the start of every name but those of `lm_head`.
        ignored: endings of tensors that say nothing: tables and masks that the model computes.
        required: settings that change what a model computes and must be at these values, or absent.
    """

    model_type: str
    architecture: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: str | None = None
    modules: Modules = LLAMA
    norm: Norm = "rms"
    norm_shift: float = 0.0
    norm_epsilon: str = "rms_norm_eps"
    intermediate_size: str = "intermediate_size"
    activation: str = "hidden_act"
    gated: bool = True
    transposed: bool = False
    scaled_embedding: bool = False
    score_scale: str | None = None
    attention_softcap: str | None = None
    logit_softcap: str | None = None
    rotary_by_layer_type: bool = False
    optional_prefix: str = "model."
    ignored: tuple[str, ...] = (".inv_freq", ".original_inv_freq", ".cos_cached", ".sin_cached")
    required: tuple[tuple[str, Any], ...] = ()


_GEMMA = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    "attention_bias",
    "attention_bias",
    window="layer_types",
    modules=GEMMA,
    norm_shift=1.0,
    activation="hidden_activation",
    scaled_embedding=True,
    score_scale="query_pre_attn_scalar",
    attention_softcap="attn_logit_softcapping",
    logit_softcap="final_logit_softcapping",
    required=(("use_bidirectional_attention", False),),
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "attention_bias", "attention_bias", "mlp_bias"),
        Family("mistral", "MistralForCausalLM", window="all"),
        Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True, window="layer_types"),
        Family("qwen3", "Qwen3ForCausalLM", "attention_bias", "attention_bias", qk_norm=True, window="layer_types"),
        _GEMMA,
        replace(
            _GEMMA,
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            qk_norm=True,
            attention_softcap=None,  # transformers reads the setting and does not use it
            rotary_by_layer_type=True,
        ),
        Family("phi3", "Phi3ForCausalLM", window="all", modules=PHI),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            modules=GPT2,
            norm="layer",
            norm_epsilon="layer_norm_epsilon",
            intermediate_size="n_inner",
            activation="activation_function",
            gated=False,
            transposed=True,
            optional_prefix="transformer.",
            ignored=(".attn.bias", ".attn.masked_bias"),
            required=(
                ("scale_attn_weights", True),
                ("scale_attn_by_inverse_layer_idx", False),
                ("add_cross_attention", False),
            ),
        ),
    )
}
# Model types that hold a text model beside others, and what that is in a folder of its own.
COMPOSITES = {"gemma3": "gemma3_text"}

EMBEDDINGS = frozenset(family.modules.embedding for family in FAMILIES.values())

# Linears that read the same input. Runtimes fuse each group into one matrix, so a group shares one scheme.
FUSED_LINEARS = tuple(branch.first for branch in LLAMA.branches)


def family_of(config: Mapping[str, Any]) -> Family:
    """The row of a config.json's family.

    Raises:
        InputError: the family is unknown, or the model is not a causal language model of that family.
    """
    model_type = str(config.get("model_type"))
    if model_type in COMPOSITES:
        raise InputError(
            f"The model is a {model_type}, which reads images too; llmc takes text models.",
            f"Its text part, saved alone as {COMPOSITES[model_type]}, works.",
        )
    if model_type not in FAMILIES:
        raise InputError(
            f"The model is of the family {config.get('model_type')!r}, which llmc does not take.",
            "Families that it takes: " + ", ".join(FAMILIES) + ".",
        )
    family = FAMILIES[model_type]
    classes = config.get("architectures") or [family.architecture]
    if not isinstance(classes, list):
        raise InputError(f"architectures of config.json is {classes!r}, which is no list of classes.")
    if family.architecture not in classes:
        raise InputError(f"The model is a {classes[0]}; llmc takes causal language models ({family.architecture}).")
    return family


def full_name(tensor: str, prefix: str) -> str:
    """A tensor's name as its family has it, whatever held the model when it was saved.

    Args:
        prefix: the `optional_prefix` of its family, which is put where the file has left it out.
    """
    name = tensor.replace(COMPILED, "")
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name if name.startswith((prefix, f"{HEAD}.")) else prefix + name
