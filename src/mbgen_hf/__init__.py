"""Generative multi-behavior recommendation on Hugging Face."""
