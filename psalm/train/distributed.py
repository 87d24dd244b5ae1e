"""The process group of a run: described where no launcher has, and without compiling anything on a CPU."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

T = TypeVar("T")


def name_single_process() -> None:
    """Describes a group of one process in the environment, where no launcher has described another one.

    DeepSpeed always wants a process group; without a launcher it would look for MPI.
    """
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Models that are built inside have all their weights, also under ZeRO-3, which shards them when training begins.

    transformers would shard the language model while it is built, but not what is around it, nor weights loaded later.
    """
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if args.deepspeed is not None:
            set_hf_deepspeed_config(args.hf_deepspeed_config)


def from_rank_0(value: T) -> T:
    """Rank 0's value, on every rank; all of them must call it."""
    values = [value]
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def leave_process_group() -> None:
    """Ends this process's part in the group, where a process is about to end: libraries complain or abort otherwise."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def without_compiled_collectives() -> None:
    """Keeps DeepSpeed on a CPU from compiling collectives of its own at the first start on a machine; gloo's serve."""
    if torch.accelerator.is_available():
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
