"""Causal attention in 16 bits for calibration text: two plain matrix products for every few queries.

torch's fused attention multiplies at a fraction of what a processor's 16-bit instructions give; this takes about half
its time, at nearly its error (benchmarks/results/attention.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NAME = "llmc_blocked"  # in transformers' table of attention functions
QUERIES_AT_ONCE = 64  # keys after the last of them are left out


def blocked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention with grouped heads.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, key-value heads, length, head_dim]; `value` too.
        scale: of the scores.

    Returns:
        [batch, length, heads, head_dim].
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    output = query.new_empty(batch, length, heads, width)
    grouped = query.reshape(batch, shared, -1, length, width)
    written = output.view(batch, length, shared, -1, width).permute(0, 2, 3, 1, 4)
    unused = query.new_zeros(())
    for start in range(0, length, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, length)
        asked = grouped[:, :, :, start:end].reshape(batch * shared, -1, width)
        keys, values = (one[:, :, :end].reshape(batch * shared, end, width) for one in (key, value))
        scores = torch.baddbmm(unused, asked, keys.transpose(1, 2), beta=0, alpha=scale)
        later = torch.ones(end - start, end - start, dtype=torch.bool).triu_(1)
        scores.view(batch * shared, -1, end - start, end)[..., start:].masked_fill_(later, float("-inf"))
        found = torch.bmm(scores.softmax(-1), values)
        written[:, :, :, start:end] = found.view(batch, shared, -1, end - start, width)
    return output


def use_in(module: nn.Module) -> None:
    """Let an attention module compute like this where it is causal and nothing else."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    config: Any = module.config
    if config._attn_implementation == "sdpa":  # and not where soft-capping wants another function
        config._attn_implementation = NAME


def _forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention function."""
    if attention_mask is not None or options.get("softcap") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return blocked_attention(query, key, value, options.get("scaling") or query.shape[-1] ** -0.5), None
