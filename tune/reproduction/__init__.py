"""Runs made again from their records."""
