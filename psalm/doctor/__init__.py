"""The doctor: would a training run work, and if not, why? ``python -m psalm.doctor`` with the flags of the training."""
