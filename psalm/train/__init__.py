"""The training loop: arguments, trainer, records of a run, evaluation of a finished run."""
