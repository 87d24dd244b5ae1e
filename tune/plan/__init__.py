"""What a search would cost, before it begins."""
