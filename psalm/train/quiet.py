"""Keeps libraries from filling the screen: only what a user can act upon is shown."""

import logging
import os
import warnings

import torch
import transformers

LOUD_LOGGERS = ("DeepSpeed", "deepspeed", "torch.distributed", "accelerate")


def quiet_libraries() -> None:
    """Warnings that libraries raise about their own insides are hidden, and their loggers speak from errors on."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found nothing better
    for name in LOUD_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading and saving weights; the Trainer's own bar stays
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|transformers|accelerate|deepspeed)\b")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|accelerate|deepspeed)\b")
