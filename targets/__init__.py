"""Deployment formats. Each module here registers one or more targets under the entry-point group `llmc.targets`."""
