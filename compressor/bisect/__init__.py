"""Which pass made a gate fail, which layers of it, and what mends it: told by tests on what was measured."""
