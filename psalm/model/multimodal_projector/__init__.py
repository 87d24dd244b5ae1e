"""Projectors: vision features to tokens of the language model."""
