"""Measuring: accuracy against the original, latency, size, and the uncertainty of each."""

BATCH_SIZE = 8  # texts that a runtime is asked at once, where nothing else is said
