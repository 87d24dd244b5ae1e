"""The order of training is a pure function of seed, step and slot."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils.data import DataLoader

from psalm.data.errors import BadImageError, DataError
from psalm.data.random import draw_key
from psalm.data.samples import Example
from psalm.data.schedule import TASK_BLOCK, TrainingSchedule, epoch_order


@dataclass
class Numbers:
    """Samples that are numbers; some cannot be read."""

    size: int
    bad: set[int] = field(default_factory=set)
    skip_bad_images: bool = False
    task: str = "panoptic"

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, random_key: int) -> Example:
        if index in self.bad:
            raise BadImageError(f"image {index}.jpg is missing")
        nothing = torch.zeros(0)
        return Example(self.task, index, nothing, (1, 1), (1, 1), nothing, nothing, random_key)


SIZES = {"panoptic": 7, "referring": 11, "region": 5}
RATIOS = {"panoptic": 5.0, "region": 2.0}
SHARES = {"panoptic": 5 / 8, "referring": 1 / 8, "region": 2 / 8}


def single(size: int, seed: int, steps: int, samples_per_step: int, **source) -> TrainingSchedule:
    return TrainingSchedule({"panoptic": Numbers(size, **source)}, seed, steps, samples_per_step)


def mixture(seed: int = 3, steps: int = 60, samples_per_step: int = 3, ratios=RATIOS) -> TrainingSchedule:
    sources = {task: Numbers(size, task=task) for task, size in SIZES.items()}
    return TrainingSchedule(sources, seed, steps, samples_per_step, ratios)


def items(schedule: TrainingSchedule, indices) -> list[tuple[str, int, int]]:
    examples = [schedule[index] for index in indices]
    return [(example.task, example.sample_id, example.random_key) for example in examples]


def read(schedule: TrainingSchedule, workers: int = 0) -> list[tuple[str, int, int]]:
    loader = DataLoader(schedule, batch_size=4, num_workers=workers, collate_fn=list)
    return [(example.task, example.sample_id, example.random_key) for batch in loader for example in batch]


def test_every_sample_appears_once_per_epoch_in_a_new_order():
    schedule = single(7, seed=5, steps=7, samples_per_step=3)
    samples = [schedule[i].sample_id for i in range(21)]
    epochs = [samples[0:7], samples[7:14], samples[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_of_one_task_is_the_same_as_ever():
    """Runs of earlier versions are reproduced by these numbers."""
    assert epoch_order(5, "panoptic", 0, 9).tolist() == [4, 7, 3, 8, 0, 6, 5, 1, 2]
    assert epoch_order(5, "panoptic", 1, 9).tolist() == [7, 1, 3, 5, 4, 0, 8, 2, 6]
    schedule = single(7, seed=5, steps=7, samples_per_step=3)
    expected = [4, 5, 3, 0, 6, 2, 1, 3, 5, 0, 2, 6, 1, 4, 3, 5, 2, 1, 0, 4, 6]
    assert [schedule.sample(i) for i in range(21)] == [("panoptic", sample) for sample in expected]
    assert [schedule.task(step) for step in range(7)] == [("panoptic", step) for step in range(7)]


def test_key_names_seed_step_and_slot():
    schedule = single(7, seed=5, steps=7, samples_per_step=3)
    assert schedule[7].random_key == draw_key(5, step=2, sample=1)


@pytest.mark.parametrize("make", [lambda: single(9, seed=1, steps=6, samples_per_step=4), lambda: mixture(steps=9)])
def test_workers_change_nothing(make):
    assert read(make(), workers=2) == read(make())


@pytest.mark.parametrize("make", [lambda: single(9, seed=1, steps=6, samples_per_step=4), mixture])
def test_random_access_equals_order_from_the_start(make):
    """A run may be resumed at any step."""
    whole = read(make())
    backwards = items(make(), reversed(range(len(whole))))
    assert backwards[::-1] == whole
    assert items(make(), range(13, len(whole))) == whole[13:]


def test_longer_run_begins_with_the_shorter_one():
    short, long = (single(9, seed=1, steps=steps, samples_per_step=4) for steps in (3, 9))
    assert read(short) == read(long)[:12]


def test_seeds_give_other_orders():
    first, second = (single(30, seed=seed, steps=1, samples_per_step=30) for seed in (0, 1))
    assert [first.sample(i) for i in range(30)] != [second.sample(i) for i in range(30)]


def test_all_slots_of_a_step_have_one_task():
    schedule = mixture()
    for step in range(60):
        tasks = {schedule[3 * step + slot].task for slot in range(3)}
        assert tasks == {schedule.task(step)[0]}
        assert {schedule.sample(3 * step + slot)[0] for slot in range(3)} == tasks


def test_samples_per_step_does_not_change_the_tasks():
    """Neither do ranks or accumulation, therefore."""
    few, many = mixture(samples_per_step=1), mixture(samples_per_step=8)
    assert [few.task(step) for step in range(60)] == [many.task(step) for step in range(60)]


def test_ratios_are_kept_over_many_steps():
    steps = 20_000
    schedule = mixture(steps=steps)
    counts = Counter(schedule.task(step)[0] for step in range(steps))
    assert schedule.shares == pytest.approx(SHARES)
    for task, share in SHARES.items():
        assert abs(counts[task] - steps * share) < 4 * math.sqrt(steps * share * (1 - share)), task


@pytest.mark.parametrize("seed", range(5))
def test_every_task_has_its_share_of_every_block(seed: int) -> None:
    """A short mixture has all its tasks, whatever the seed."""
    schedule = mixture(steps=4 * TASK_BLOCK, seed=seed)
    for start in range(0, 4 * TASK_BLOCK, TASK_BLOCK):
        counts = Counter(schedule.task(step)[0] for step in range(start, start + TASK_BLOCK))
        for task, share in SHARES.items():
            assert abs(counts[task] - TASK_BLOCK * share) <= 1, task


def test_each_step_draws_its_task_anew():
    """How often two steps in a row have one task is what chance says, within a block of draws and across."""
    steps = 3 * TASK_BLOCK
    schedule = mixture(steps=steps)
    tasks = [schedule.task(step)[0] for step in range(steps)]
    share = sum(share**2 for share in SHARES.values())
    for lag in (1, TASK_BLOCK):
        pairs = steps - lag
        repeats = sum(tasks[step] == tasks[step + lag] for step in range(pairs))
        assert abs(repeats - pairs * share) < 5 * math.sqrt(pairs * share * (1 - share)), lag


def test_tasks_without_ratios_are_equally_likely():
    assert mixture(ratios=None).shares == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_ratios_are_relative():
    schedule, scaled = (
        mixture(ratios={"panoptic": 4, "referring": 1}),
        mixture(ratios={"panoptic": 8, "referring": 2, "region": 2}),
    )
    assert [schedule.task(step) for step in range(60)] == [scaled.task(step) for step in range(60)]


def test_same_seed_same_tasks():
    assert read(mixture()) == read(mixture())
    first, other = ([mixture(seed=seed).task(step)[0] for step in range(60)] for seed in (3, 4))
    assert first != other


@pytest.mark.parametrize("short", [1, 50, TASK_BLOCK - 1, TASK_BLOCK, TASK_BLOCK + 3])
def test_longer_mixture_begins_with_the_shorter_one(short):
    long = mixture(steps=2 * TASK_BLOCK + 5)
    schedule = mixture(steps=short)
    assert [schedule.task(step) for step in range(short)] == [long.task(step) for step in range(short)]
    last = range(max(len(schedule) - 9, 0), len(schedule))
    assert items(schedule, last) == items(long, last)


def test_every_sample_appears_once_per_epoch_of_its_own_task():
    schedule = mixture(steps=200)
    samples = defaultdict(list)
    for task, sample, _ in items(schedule, range(len(schedule))):
        samples[task].append(sample)
    for task, size in SIZES.items():
        epochs = [samples[task][start : start + size] for start in range(0, len(samples[task]), size)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1]), task
        assert len(set(epochs[-1])) == len(epochs[-1])


def test_other_tasks_do_not_change_the_order_of_a_tasks_samples():
    mixed = [sample for task, sample, _ in read(mixture()) if task == "panoptic"]
    alone = single(7, seed=3, steps=60, samples_per_step=3)
    assert mixed == [alone.sample(index)[1] for index in range(len(mixed))]


def test_steps_per_task_are_counted():
    schedule = mixture(steps=200)
    for before in (0, 1, 77, 200):
        counts = Counter(schedule.task(step)[0] for step in range(before))
        assert schedule.steps_per_task(before) == {task: counts[task] for task in SIZES}
    assert schedule.steps_per_task() == schedule.steps_per_task(200)
    assert single(7, seed=5, steps=4, samples_per_step=3).steps_per_task() == {"panoptic": 4}


def test_skipped_image_is_replaced_by_one_of_its_task():
    sources = {task: Numbers(size, {0, 3}, True, task) for task, size in SIZES.items()}
    schedule, plain = TrainingSchedule(sources, 3, 60, 3, RATIOS), mixture()
    for index in range(180):
        example, (task, sample) = schedule[index], plain.sample(index)
        assert example.task == task
        assert example.sample_id not in (0, 3)
        assert example.sample_id == sample or sample in (0, 3)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"depth": 1.0}, "a ratio is given for 'depth', but the tasks are panoptic, referring, region"),
        ({"region": 0.0}, "the ratio of 'region' must be a number above 0, but got 0.0"),
        ({"region": -2.0}, "the ratio of 'region' must be a number above 0, but got -2.0"),
        ({"region": math.nan}, "the ratio of 'region' must be a number above 0, but got nan"),
        ({"region": math.inf}, "the ratio of 'region' must be a number above 0, but got inf"),
    ],
)
def test_bad_ratios(ratios, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        mixture(ratios=ratios)


def test_bad_image_ends_training():
    schedule = single(3, seed=0, steps=1, samples_per_step=3, bad={1})
    with pytest.raises(BadImageError, match=r"1\.jpg"):
        [schedule[i] for i in range(3)]


def test_skipped_image_is_replaced_by_the_next_good_one_of_the_epoch():
    plain = single(6, seed=0, steps=1, samples_per_step=6)
    order = [plain[i].sample_id for i in range(6)]
    bad = {order[1], order[2], order[5]}
    schedule = single(6, seed=0, steps=1, samples_per_step=6, bad=bad, skip_bad_images=True)
    samples = [schedule[i].sample_id for i in range(6)]
    assert samples == [order[0], order[3], order[3], order[3], order[4], order[0]]
    assert not bad & Counter(samples).keys()


def test_nothing_left_to_train_on():
    schedule = single(2, seed=0, steps=1, samples_per_step=1, bad={0, 1}, skip_bad_images=True)
    with pytest.raises(DataError, match="no sample of the task panoptic is left to train on: every image is missing"):
        schedule[0]


@pytest.mark.parametrize(
    ("datasets", "steps", "samples", "message"),
    [
        ({}, 1, 1, "at least one task, but got none"),
        ({"a": Numbers(0)}, 1, 1, "task 'a' has no samples"),
        ({"a": Numbers(1), "b": Numbers(0)}, 1, 1, "task 'b' has no samples"),
        ({"a": Numbers(1)}, 0, 1, "total_steps must be at least 1, but got 0"),
        ({"a": Numbers(1)}, 1, 0, "samples_per_step must be at least 1, but got 0"),
    ],
)
def test_refusals(datasets, steps, samples, message):
    with pytest.raises(ValueError, match=message):
        TrainingSchedule(datasets, seed=0, total_steps=steps, samples_per_step=samples)


def test_index_beyond_the_end():
    schedule = single(3, seed=0, steps=2, samples_per_step=2)
    assert len(schedule) == 4
    with pytest.raises(IndexError, match="4 is outside the schedule's 4"):
        schedule[4]
