"""The tools that comparisons run, each in its environment."""

from __future__ import annotations

import sys

from peer import Peer

LLMC = Peer(sys.prefix, "llmc_peer.py", ())
# torch first and pinned, so that nothing pulls a CUDA build. compressed-tensors is what auto-round exports with.
PINS = ["torch==2.13.0", "transformers==5.17.0", "compressed-tensors==0.19.0"]
LLM_COMPRESSOR = Peer(".venv-llmcompressor", "llmcompressor_peer.py")
AUTO_ROUND = Peer(".venv-autoround", "autoround_peer.py", (["torch==2.13.0"], ["auto-round==0.16.1", *PINS]))
