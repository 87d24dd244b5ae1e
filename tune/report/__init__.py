"""What came of searches, as a page and pictures."""
