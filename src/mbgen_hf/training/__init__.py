"""Trainer glue, presets and callbacks."""
