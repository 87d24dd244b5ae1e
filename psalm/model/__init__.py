"""The PSALM model and its parts."""
