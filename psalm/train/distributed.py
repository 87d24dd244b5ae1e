"""The process group of a run that no launcher started."""

import os
import socket


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
