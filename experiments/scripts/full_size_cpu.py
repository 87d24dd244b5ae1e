"""One training run at full size on a CPU: does it work, how long is a step, is the estimate of its memory right?

    python experiments/scripts/full_size_cpu.py --panoptic_json_path /data/coco --weights runs/full_weights

Phi-1.5, Swin-B and both projectors, from random weights in the published formats (they are written into ``--weights``
where they are missing, 3.4 GB, by ``psalm.tools.make_random_weights``). Two optimizer steps, each with one real image,
padded to 1024 x 1024; the projectors alone are trained, in bf16 under DeepSpeed ZeRO-2, as the training scripts do it.
Takes a few minutes and some 8 GB of memory. ``OMP_NUM_THREADS`` says how many cores are used.

Memory is the growth of the process's resident memory since just before the model is built: what Python and its
libraries take until then differs between installations; it is shown, not compared. It has two peaks: the model as it is
built, in float32, and the training, estimated as ``psalm.model.sizes`` does, for this run's batches. Exit code 0 if all
losses are finite and both peaks are within 20 % of their estimates, else 1.

glibc gives memory that was freed back to the system only in part, and that would be measured too: a fourth more. So the
script starts itself again with ``MALLOC_MMAP_THRESHOLD_`` set, with which it gives back all that is large.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from psalm.doctor.measuring import PeakMemory
from psalm.model.activations import StepSizes, step_activations
from psalm.model.memory import FLOAT32, Sharding, memory_need
from psalm.tools.make_random_weights import write_random_weights
from psalm.train.arguments import parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.fingerprints import count_parameters
from psalm.train.train import build_trainer
from psalm.train.trainer import PsalmTrainer

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Tensors of a megabyte and more are given back when they are freed."""
TOLERANCE = 0.2
"""Of an estimate, as a share of it."""
STEPS = 2


def settings(weights: Path, panoptic_json_path: Path, output_dir: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """Those of the run, as a command line gives them."""
    return {
        "model_name_or_path": str(weights / "phi"),
        "vision_tower": str(weights / "swin_base.pkl"),
        "pretrain_mm_mlp_adapter": str(weights / "mm_projector_base.bin"),
        "swin_type": "base",
        "mm_projector_type": "deformable",
        "tune_mm_mlp_adapter": True,
        "panoptic_json_path": str(panoptic_json_path),
        "image_size": 1024,
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": gradient_checkpointing,
        "bf16": True,
        "deepspeed": "zero2",
        "use_cpu": True,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "output_dir": output_dir,
    }


def expected(trainer: PsalmTrainer) -> tuple[int, int]:
    """Estimated bytes: of the model as built, with which the training begins too, and of the training."""
    total, trained = count_parameters(trainer.model), count_parameters(trainer.model, trainable=True)
    activations = max(
        step_activations(
            trainer.model.config,
            StepSizes.of(trainer.data_collator([trainer.train_dataset[step]])),
            projectors_only=True,
            gradient_checkpointing=trainer.args.gradient_checkpointing,
        )
        for step in range(STEPS)
    )
    need = memory_need(trained, total - trained, activations, half=True, sharding=Sharding(2, 1))
    return FLOAT32 * total, max(FLOAT32 * total, need.total)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoptic_json_path", type=Path, required=True, help="folder in COCO's panoptic layout")
    parser.add_argument("--weights", type=Path, required=True, help="folder of full-size weights")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="compute activations again")
    options = parser.parse_args(argv)
    if not (options.weights / "mm_projector_base.bin").is_file():
        write_random_weights(options.weights, "full", towers=("base",))
    with tempfile.TemporaryDirectory(prefix="psalm-full-size-") as folder:
        code = run(settings(options.weights, options.panoptic_json_path, folder, options.gradient_checkpointing))
    leave_process_group()
    return code


def run(given: dict[str, Any]) -> int:
    """The run with these settings; returns the exit code."""
    args = parse_settings(given)
    device, before = torch.device("cpu"), _resident()
    with PeakMemory(device) as building:
        trainer = build_trainer(args)
    built = _resident() - before
    with PeakMemory(device) as training:
        trainer.train()
    losses = [log for log in trainer.state.log_history if "loss" in log]
    for log in losses:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in log.items() if name.startswith("loss"))
        _say(f"step {log['step']}: {parts}; {log['system/step_seconds']:.0f} seconds")
    _say(f"Python and its libraries: {before / 1e9:.2f} GB, not counted below")
    of_model, of_training = expected(trainer)
    fits = [
        compared("model as built", building.growth, of_model),
        compared("training", built + training.growth, of_training),
    ]
    finite = len(losses) == STEPS and all(math.isfinite(log["loss"]) for log in losses)
    return 0 if finite and all(fits) else 1


def compared(name: str, measured: int, estimate: int) -> bool:
    """Says both and their ratio; returns whether the estimate is near enough."""
    ratio = measured / estimate
    _say(f"{name}: peak {measured / 1e9:.2f} GB, estimate {estimate / 1e9:.2f} GB, ratio {ratio:.3f}")
    return abs(ratio - 1) <= TOLERANCE


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    raise SystemExit(main(sys.argv[1:]))
