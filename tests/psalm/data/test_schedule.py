"""The order of training is a pure function of seed, step and slot."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils.data import DataLoader

from psalm.data.errors import BadImageError, DataError
from psalm.data.random import draw_key
from psalm.data.samples import Example
from psalm.data.schedule import TrainingSchedule


@dataclass
class Numbers:
    """Samples that are numbers; some cannot be read."""

    size: int
    bad: set[int] = field(default_factory=set)
    skip_bad_images: bool = False

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, random_key: int) -> Example:
        if index in self.bad:
            raise BadImageError(f"image {index}.jpg is missing")
        nothing = torch.zeros(0)
        return Example("panoptic", index, nothing, (1, 1), (1, 1), nothing, [], nothing, nothing, nothing, random_key)


def read(schedule: TrainingSchedule, workers: int = 0, start: int = 0) -> list[tuple[int, int]]:
    loader = DataLoader(schedule, batch_size=4, num_workers=workers, collate_fn=list)
    items = [(example.sample_id, example.random_key) for batch in loader for example in batch]
    return items[start:]


def test_every_sample_appears_once_per_epoch_in_a_new_order():
    schedule = TrainingSchedule({"panoptic": Numbers(7)}, seed=5, total_steps=7, samples_per_step=3)
    samples = [schedule[i].sample_id for i in range(21)]
    epochs = [samples[0:7], samples[7:14], samples[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_key_names_seed_step_and_slot():
    schedule = TrainingSchedule({"panoptic": Numbers(7)}, seed=5, total_steps=7, samples_per_step=3)
    assert schedule[7].random_key == draw_key(5, step=2, sample=1)


def test_workers_change_nothing():
    schedule = TrainingSchedule({"panoptic": Numbers(9)}, seed=1, total_steps=6, samples_per_step=4)
    assert read(schedule, workers=2) == read(schedule)


def test_random_access_equals_order_from_the_start():
    in_order = TrainingSchedule({"panoptic": Numbers(9)}, seed=1, total_steps=6, samples_per_step=4)
    whole = read(in_order)
    resumed = TrainingSchedule({"panoptic": Numbers(9)}, seed=1, total_steps=6, samples_per_step=4)
    assert [(resumed[i].sample_id, resumed[i].random_key) for i in range(13, 24)] == whole[13:]


def test_longer_run_begins_with_the_shorter_one():
    short, long = (
        TrainingSchedule({"panoptic": Numbers(9)}, seed=1, total_steps=steps, samples_per_step=4) for steps in (3, 9)
    )
    assert read(short) == read(long)[:12]


def test_seeds_give_other_orders():
    first, second = (
        TrainingSchedule({"panoptic": Numbers(30)}, seed=seed, total_steps=1, samples_per_step=30) for seed in (0, 1)
    )
    assert [first.sample(i) for i in range(30)] != [second.sample(i) for i in range(30)]


def test_bad_image_ends_training():
    schedule = TrainingSchedule({"panoptic": Numbers(3, bad={1})}, seed=0, total_steps=1, samples_per_step=3)
    with pytest.raises(BadImageError, match=r"1\.jpg"):
        [schedule[i] for i in range(3)]


def test_skipped_image_is_replaced_by_the_next_good_one_of_the_epoch():
    plain = TrainingSchedule({"panoptic": Numbers(6)}, seed=0, total_steps=1, samples_per_step=6)
    order = [plain[i].sample_id for i in range(6)]
    bad = {order[1], order[2], order[5]}
    source = Numbers(6, bad=bad, skip_bad_images=True)
    schedule = TrainingSchedule({"panoptic": source}, seed=0, total_steps=1, samples_per_step=6)
    samples = [schedule[i].sample_id for i in range(6)]
    assert samples == [order[0], order[3], order[3], order[3], order[4], order[0]]
    assert not bad & Counter(samples).keys()


def test_nothing_left_to_train_on():
    source = Numbers(2, bad={0, 1}, skip_bad_images=True)
    schedule = TrainingSchedule({"panoptic": source}, seed=0, total_steps=1, samples_per_step=1)
    with pytest.raises(DataError, match="no sample is left"):
        schedule[0]


@pytest.mark.parametrize(
    ("datasets", "steps", "samples", "message"),
    [
        ({}, 1, 1, "exactly one task, but got none"),
        ({"a": Numbers(1), "b": Numbers(1)}, 1, 1, r"exactly one task, but got \['a', 'b'\]"),
        ({"a": Numbers(0)}, 1, 1, "task 'a' has no samples"),
        ({"a": Numbers(1)}, 0, 1, "total_steps must be at least 1, but got 0"),
        ({"a": Numbers(1)}, 1, 0, "samples_per_step must be at least 1, but got 0"),
    ],
)
def test_refusals(datasets, steps, samples, message):
    with pytest.raises(ValueError, match=message):
        TrainingSchedule(datasets, seed=0, total_steps=steps, samples_per_step=samples)


def test_index_beyond_the_end():
    schedule = TrainingSchedule({"panoptic": Numbers(3)}, seed=0, total_steps=2, samples_per_step=2)
    assert len(schedule) == 4
    with pytest.raises(IndexError, match="4 is outside the schedule's 4"):
        schedule[4]
