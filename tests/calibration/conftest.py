"""Fixtures for calibration's tests: a tokenizer that puts bos before every text."""

from __future__ import annotations

import copy
from typing import Any

import pytest


@pytest.fixture(scope="session")
def bos_tokenizer(byte_tokenizer: Any) -> Any:
    """`byte_tokenizer`, but adding `<|begin|>` by itself, as Llama's tokenizers do."""
    from tokenizers import processors

    tokenizer = copy.deepcopy(byte_tokenizer)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer
