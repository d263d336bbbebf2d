"""Measuring: accuracy against the original, latency, size, and the uncertainty of each."""
