"""What MLflow is told of runs, and what it is asked for again."""
