"""Commands that make what the package ships, and that convert weights."""
