"""What decides in a search: its trials as they stand, what is proposed, who is stopped, what was known before."""
