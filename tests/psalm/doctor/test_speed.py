"""Which of loader and model a training waits for."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from psalm.data.errors import BadImageError
from psalm.doctor.findings import Status
from psalm.doctor.speed import check_speed, compare, loader_seconds
from psalm.doctor.step import check_steps
from psalm.doctor.surroundings import Device
from psalm.train.trainer import PsalmTrainer

Build = Callable[..., tuple[PsalmTrainer, dict[str, Any]]]


@pytest.mark.parametrize(
    ("loading", "workers", "status", "ending"),
    [
        (0.1, 0, Status.OK, "the model is the bottleneck, as it should be"),
        (0.5, 0, Status.ADVICE, "the loader is the bottleneck: --dataloader_num_workers 3 (now 0)"),
        (0.5, 2, Status.ADVICE, "the loader is the bottleneck: --dataloader_num_workers 5 (now 2)"),
        (5.0, 2, Status.ADVICE, "the loader is the bottleneck: --dataloader_num_workers 8 (now 2)"),
        (0.5, 8, Status.ADVICE, "the loader is the bottleneck, and 8 workers use all 8 CPU threads"),
    ],
)
def test_the_bottleneck_is_named(loading: float, workers: int, status: Status, ending: str) -> None:
    (finding,) = compare(loading, 0.2, workers, threads=8)
    assert finding.status is status
    assert finding.text == f"loading {loading:.2g} s, forward and backward 0.2 s per batch: {ending}"


class Slow(Dataset[int]):
    """Takes a while for every sample."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


@pytest.mark.parametrize(("workers", "expected"), [(0, 0.1), (2, 0.05)])
def test_seconds_per_batch_of_a_loader(workers: int, expected: float) -> None:
    seconds = loader_seconds(DataLoader(Slow(), batch_size=5, num_workers=workers), workers)
    assert 0.7 * expected < seconds < 5 * expected


@pytest.mark.parametrize("count", [1, 2])
def test_a_loader_of_few_batches_is_timed_too(count: int) -> None:
    loader = DataLoader(Slow(), sampler=range(5 * count), batch_size=5)  # type: ignore[arg-type]
    assert 0.1 <= loader_seconds(loader, 0) < 0.5


def test_a_loader_that_is_slower_than_the_model_is_found(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, settings = build()
    steps, _ = check_steps(trainer, settings, Device("cpu", 2**40), lambda text: None)
    (finding,) = check_speed(trainer, steps)
    assert finding.status is Status.OK
    read = trainer.train_dataset.datasets["panoptic"].data.read_row
    slowly = lambda row: time.sleep(0.3) or read(row)  # noqa: E731
    monkeypatch.setattr(trainer.train_dataset.datasets["panoptic"].data, "read_row", slowly)
    (finding,) = check_speed(trainer, steps)
    assert finding.status is Status.ADVICE
    assert "the loader is the bottleneck" in finding.text


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_a_problem(build: Build, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    trainer, _ = build(dataloader_num_workers=workers)

    def fail(row: int) -> None:
        raise BadImageError("image a.jpg is truncated")

    monkeypatch.setattr(trainer.train_dataset.datasets["panoptic"].data, "read_row", fail)
    (finding,) = check_speed(trainer, [])
    assert finding.status is Status.PROBLEM
    assert finding.text.endswith("image a.jpg is truncated")
