"""Passes: each turns one checkpoint into another. One file a pass, one line in pyproject.toml to add it."""
