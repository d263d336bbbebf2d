"""Calibration: text as token windows, and statistics of activations."""
