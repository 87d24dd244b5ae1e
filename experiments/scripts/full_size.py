"""A short training run at full size: does it work, how long is a step, is the estimate of its memory right?

    python experiments/scripts/full_size.py --panoptic_json_path /data/coco --weights runs/full_weights
    python experiments/scripts/full_size.py ... --set per_device_train_batch_size=4 max_steps=8

Phi-1.5, Swin-B and both projectors, from random weights in the published formats (they are written into ``--weights``
where they are missing, 3.4 GB, by ``psalm.tools.make_random_weights``). Two optimizer steps, each with one real image,
padded to 1024 x 1024; the projectors alone are trained, in bf16 under DeepSpeed ZeRO-2, as the training scripts do it.
``--set`` replaces any of these settings, or adds to them: ``bf16=false fp16=true`` is the other precision,
``tune_mm_mlp_adapter=false`` trains the whole model but its vision tower.

It runs on the GPU where there is one, and on a CPU else: there it takes a few minutes and some 8 GB of memory, and
``OMP_NUM_THREADS`` says how many cores are used.

On a GPU, memory is what torch has allocated on it, at the peak of the training. On a CPU it is the growth of the
process's resident memory since just before the model is built: what Python and its libraries take until then differs
between installations; it is shown, not compared. It has two peaks: the model as it is built, in float32, and the
training. The training is estimated as ``psalm.model.sizes`` does, for this run's batches. Exit code 0 if all losses are
finite and all peaks are within 20 % of their estimates, else 1.

glibc gives memory that was freed back to the system only in part, and that would be measured too: a fourth more. So the
script starts itself again with ``MALLOC_MMAP_THRESHOLD_`` set, with which it gives back all that is large.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from psalm.doctor.measuring import PeakMemory
from psalm.model.activations import StepSizes, step_activations
from psalm.model.memory import FLOAT32, Sharding, memory_need
from psalm.tools.make_random_weights import write_random_weights
from psalm.train.arguments import Arguments, SettingError, parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.fingerprints import count_parameters
from psalm.train.train import build_trainer
from psalm.train.trainer import PsalmTrainer

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Tensors of a megabyte and more are given back when they are freed."""
TOLERANCE = 0.2
"""Of an estimate, as a share of it."""
STEPS = 2
WARM_UP = 2
"""Steps of a longer run whose seconds do not count: the first ones choose kernels and fill caches."""


def settings(weights: Path, panoptic_json_path: Path, output_dir: str) -> dict[str, Any]:
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
        "bf16": True,
        "deepspeed": "zero2",
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "output_dir": output_dir,
    }


@dataclass(frozen=True)
class Peak:
    """A peak of memory in bytes, beside what was expected."""

    name: str
    measured: int
    estimate: int

    @property
    def ratio(self) -> float:
        """Measured to estimated."""
        return self.measured / self.estimate

    def __str__(self) -> str:
        sizes = f"peak {self.measured / 1e9:.2f} GB, estimate {self.estimate / 1e9:.2f} GB"
        return f"{self.name}: {sizes}, ratio {self.ratio:.3f}"


@dataclass(frozen=True)
class Measured:
    """What a run came to.

    Attributes:
        before: bytes that the process had taken before, on the run's device.
        logs: of each step: its losses by name, weighted, and ``system/step_seconds``.
        peaks: of memory.
        reserved: bytes that torch's allocator held of the GPU at most; 0 on a CPU.
        in_use: bytes of the GPU that were not free after the run, those of other processes too; 0 on a CPU.
    """

    before: int
    logs: list[dict[str, float]]
    peaks: list[Peak]
    reserved: int
    in_use: int

    @property
    def step_seconds(self) -> float:
        """The median step, without the first ``WARM_UP`` where there are more."""
        seconds = [log["system/step_seconds"] for log in self.logs]
        return statistics.median(seconds[WARM_UP:] or seconds)

    @property
    def finite(self) -> bool:
        """Whether all losses are."""
        return all(math.isfinite(log["loss"]) for log in self.logs)


def measure(args: Arguments) -> Measured:
    """Builds and trains once."""
    device = args.training.device
    before = _taken(device)
    with PeakMemory(device) as building:
        trainer = build_trainer(args)
    built = _taken(device) - before
    with PeakMemory(device) as training:
        trainer.train()
    reserved = in_use = 0
    if device.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        in_use = total - free
    of_model, of_training = expected(trainer)
    peaks = [Peak("training", built + training.growth, of_training)]
    if device.type == "cpu":
        peaks.insert(0, Peak("model as built", building.growth, of_model))
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return Measured(before, logs, peaks, reserved, in_use)


def expected(trainer: PsalmTrainer) -> tuple[int, int]:
    """Estimated bytes: of the model as built, with which a CPU's training begins too, and of the training."""
    args = trainer.args
    total, trained = count_parameters(trainer.model), count_parameters(trainer.model, trainable=True)
    half = args.bf16 or args.fp16
    sharding = None
    if args.deepspeed is not None:
        stage = args.hf_deepspeed_config.config["zero_optimization"]["stage"]
        sharding = Sharding(stage, args.world_size)
    activations = max(
        step_activations(
            trainer.model.config,
            sizes,
            projectors_only=trainer.settings["tune_mm_mlp_adapter"],
            gradient_checkpointing=trainer.settings["gradient_checkpointing"],
            dtype=torch.bfloat16 if half else torch.float32,
        )
        for sizes in micro_batches(trainer)
    )
    need = memory_need(trained, total - trained, activations, half=half, sharding=sharding)
    as_built = FLOAT32 * total
    return as_built, max(as_built, need.total) if args.device.type == "cpu" else need.total


def micro_batches(trainer: PsalmTrainer) -> set[StepSizes]:
    """Sizes of those that the run has had; of equal ones with other numbers of masks, those with the most."""
    samples, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    most: dict[StepSizes, StepSizes] = {}
    for first in range(0, len(samples), size):
        sizes = StepSizes.of(trainer.data_collator([samples[index] for index in range(first, first + size)]))
        others = replace(sizes, masks=0)
        most[others] = max(sizes, most.get(others, sizes), key=lambda each: each.masks)
    return {*most.values()}


def report(measured: Measured) -> int:
    """Says all of it; returns the exit code."""
    for log in measured.logs:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in log.items() if name.startswith("loss"))
        _say(f"step {log['step']:.0f}: {parts}; {log['system/step_seconds']:.3g} seconds")
    _say(f"a step: {measured.step_seconds:.3g} seconds")
    _say(f"taken before: {measured.before / 1e9:.2f} GB, not counted below")
    for peak in measured.peaks:
        _say(str(peak))
    if measured.reserved:
        _say(f"reserved by torch: {measured.reserved / 1e9:.2f} GB; in use of the GPU: {measured.in_use / 1e9:.2f} GB")
    near = all(abs(peak.ratio - 1) <= TOLERANCE for peak in measured.peaks)
    return 0 if measured.logs and measured.finite and near else 1


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoptic_json_path", type=Path, required=True, help="folder in COCO's panoptic layout")
    parser.add_argument("--weights", type=Path, required=True, help="folder of full-size weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="training arguments")
    options = parser.parse_args(argv)
    if not (options.weights / "mm_projector_base.bin").is_file():
        write_random_weights(options.weights, "full", towers=("base",))
    with tempfile.TemporaryDirectory(prefix="psalm-full-size-") as folder:
        given = settings(options.weights, options.panoptic_json_path, folder)
        try:
            args = parse_settings(given | assignments(options.set))
        except SettingError as error:
            parser.error(str(error))
        code = report(measure(args))
    leave_process_group()
    return code


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Name -> value of each ``NAME=VALUE``.

    Raises:
        SettingError: one has no ``=``.
    """
    for text in texts:
        if "=" not in text:
            raise SettingError(f"--set takes NAME=VALUE, but got {text!r}; write a = between the two")
    return dict(text.split("=", 1) for text in texts)


def _taken(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    raise SystemExit(main(sys.argv[1:]))
