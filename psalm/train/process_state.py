"""Lets one process train one run after another: what libraries keep of a run is taken back at its end."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils.import_utils import enable_tf32

from psalm.train.measures import reset_peak_memory

_FLOAT32_PRECISION = torch.backends.fp32_precision
"""PyTorch's own: arguments change it when they are made, that is before a run begins."""


@contextmanager
def own_process_state(args: TrainingArguments) -> Iterator[None]:
    """A run inside finds libraries as these arguments want them and leaves them as they were; process groups stay.

    accelerate keeps devices, precision and DeepSpeed's plugin in class attributes, and in the environment that
    DeepSpeed is used; transformers keeps DeepSpeed's configuration, and whether TF32 has been switched on already;
    full determinism sets flags of PyTorch and the environment.
    """
    _forget_accelerator()
    vars(args).pop("_setup_devices", None)  # cached; other arguments may have been made since
    args._setup_devices  # noqa: B018
    reset_peak_memory()
    environment = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if torch.backends.fp32_precision != _FLOAT32_PRECISION:
            torch.backends.fp32_precision = _FLOAT32_PRECISION
            enable_tf32.cache_clear()
        unset_hf_deepspeed_config()
        _forget_accelerator()
        gc.collect()
        torch.cuda.empty_cache()


def _forget_accelerator() -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
