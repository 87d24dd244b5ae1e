"""Searches replayed on recorded learning curves."""
