"""Data: official files in, model-ready examples out. Imports neither the model nor the evaluation."""
