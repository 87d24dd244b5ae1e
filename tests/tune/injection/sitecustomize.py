"""Put on PYTHONPATH by a test: every Python process of a search imports it, and training fails as the test wants.

``PSALM_TEST_OOM`` holds as JSON what does not fit: {"micro_batch": 2, "from_step": 3} raises
``torch.OutOfMemoryError`` in every step from that one on that is taken without gradient checkpointing, or with a
micro-batch of at least that size. With {"hog_mb": 4000} besides, the step takes so much of the host's memory instead,
a little at a time.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from types import ModuleType
from typing import Any

TRAINER = "psalm.train.trainer"


class Patch(importlib.abc.MetaPathFinder):
    """Finds the trainer's module as usual, and changes it once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != TRAINER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def load(module: ModuleType) -> None:
            run(module)
            limit_memory(module.PsalmTrainer, json.loads(os.environ["PSALM_TEST_OOM"]))

        spec.loader.exec_module = load
        return spec


def limit_memory(trainer: Any, limits: dict[str, Any]) -> None:
    compute = trainer.compute_loss

    def compute_or_fail(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        due = model.training and self.state.global_step + 1 >= limits["from_step"]
        large = self.args.per_device_train_batch_size >= limits["micro_batch"]
        if due and (large or not self.args.gradient_checkpointing):
            if "hog_mb" in limits:
                hog(limits["hog_mb"])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB (injected by a test)")
        return compute(self, model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_or_fail


def hog(megabytes: int) -> None:
    """Takes memory, and waits for who may want it back."""
    held = []
    for _ in range(megabytes // 100):
        held.append(b"x" * 100 * 2**20)
        time.sleep(0.05)
    time.sleep(60)


if "PSALM_TEST_OOM" in os.environ:
    sys.meta_path.insert(0, Patch())
