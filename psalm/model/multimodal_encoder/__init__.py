"""The vision tower."""
