"""Lets one process train one run after another: what libraries keep of a run is taken back at its end."""

import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.nn import functional
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils.import_utils import enable_tf32

from psalm.train.measures import reset_peak_memory

_BACKENDS: Any = torch.backends
_FLOAT32_PRECISION: str = _BACKENDS.fp32_precision
"""PyTorch's own: arguments change it when they are made, before their run begins."""


@contextmanager
def own_process_state(args: TrainingArguments) -> Iterator[None]:
    """A run inside finds libraries as these arguments want them and leaves them as they were; process groups stay.

    accelerate keeps devices, precision and DeepSpeed's plugin in class attributes, and in the environment that
    DeepSpeed is used; transformers keeps DeepSpeed's configuration, and whether TF32 has been switched on already;
    full determinism sets flags of PyTorch and the environment; ZeRO-3 replaces a function of PyTorch.
    """
    _forget_accelerator()
    vars(args).pop("_setup_devices", None)  # cached; other arguments may have been made since
    args._setup_devices  # noqa: B018
    reset_peak_memory()
    environment = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    linear = functional.linear
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        functional.linear = linear
        if _BACKENDS.fp32_precision != _FLOAT32_PRECISION:
            _BACKENDS.fp32_precision = _FLOAT32_PRECISION
            enable_tf32.cache_clear()
        unset_hf_deepspeed_config()
        _forget_accelerator()
        if args.deepspeed is not None:
            _forget_engine()
        gc.collect()
        torch.cuda.empty_cache()


def _forget_accelerator() -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()


def _forget_engine() -> None:
    """ZeRO-3 keeps every model that it has had in a stack, and in the cache of a method by object and arguments."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK.clear()
    method = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()
