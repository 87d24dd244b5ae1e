"""The process group of a run: described where no launcher has, and without compiling anything on a CPU."""

import os
import socket

import torch


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


def without_compiled_collectives() -> None:
    """Keeps DeepSpeed on a CPU from compiling collectives of its own at the first start on a machine; gloo's serve."""
    if torch.accelerator.is_available():
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
