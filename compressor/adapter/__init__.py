"""Adapters that PEFT leaves beside a model: what they are, and which parameters their tensors change."""

from compressor.adapter.config import CONFIG_FILE
from compressor.adapter.folder import Adapter, holds_adapter, is_adapter, open_adapter

__all__ = ["CONFIG_FILE", "Adapter", "holds_adapter", "is_adapter", "open_adapter"]
