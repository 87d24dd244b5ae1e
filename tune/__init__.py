"""Hyperparameter exploration for PSALM: Ray Tune and Optuna search, Ray Train trains, MLflow compares."""
