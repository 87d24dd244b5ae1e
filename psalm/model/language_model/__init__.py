"""Language models that PSALM is built around."""
