"""What is scored is never trained on, and is the same for the same data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psalm.constants import REFERRING
from psalm.data.coco_panoptic import PanopticData
from psalm.data.dataset import File, TaskData
from psalm.data.errors import DataError
from psalm.data.held_out import hold_out


class Named(TaskData):
    """Samples that are names of images: first the one that is segmented."""

    task = REFERRING

    def __init__(self, images: Sequence[tuple[str, ...]], folder: str = "images") -> None:
        super().__init__(len(images))
        self.images = images
        self.folder = Path(folder)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        return (Path("annotations.json"),)

    def read_row(self, row: int) -> Any:
        raise NotImplementedError

    def check_row(self, row: int) -> None:
        raise NotImplementedError

    def files_of_row(self, row: int) -> tuple[File, ...]:
        kinds = ("target image", "prompt image")
        images = [File(kind, self.folder / name) for kind, name in zip(kinds, self.images[row], strict=False)]
        return (*images, File("semantic PNG", self.folder / "all.png"))


def singles(count: int) -> list[tuple[str, ...]]:
    return [(f"{number:03}.jpg",) for number in range(count)]


def pairs(count: int, images: int) -> list[tuple[str, ...]]:
    """Pairs of different images at random."""
    rng = np.random.default_rng(0)
    names = [f"{number:03}.jpg" for number in range(images)]
    return [tuple(rng.choice(names, 2, replace=False).tolist()) for _ in range(count)]


def names_of(data: TaskData) -> list[tuple[str, ...]]:
    return [data.image_names(index) for index in range(len(data))]


def flat(samples: list[tuple[str, ...]]) -> set[str]:
    return {name for sample in samples for name in sample}


SEVERAL = [(f"{number:02}.jpg",) for number in range(50) for _ in range(1 + number % 4)]


@pytest.mark.parametrize(
    "samples",
    [singles(200), SEVERAL, SEVERAL[::-1], pairs(80, 100), pairs(300, 60), pairs(40, 400)],
    ids=["one", "several", "reversed", "pairs", "many pairs", "loose pairs"],
)
def test_no_training_sample_has_an_image_that_validation_segments(samples):
    training, validation = map(names_of, hold_out(Named(samples)))
    assert training
    assert validation
    assert not flat(training) & {segmented for segmented, *_ in validation}


@pytest.mark.parametrize("samples", [singles(200), SEVERAL], ids=["one", "several"])
def test_every_sample_about_one_image_is_in_one_part(samples):
    training, validation = map(names_of, hold_out(Named(samples)))
    assert sorted(training + validation) == sorted(samples)


def test_only_pairs_prompted_by_an_image_held_out_are_in_no_part():
    samples = pairs(300, 60)
    training, validation = map(names_of, hold_out(Named(samples)))
    held = {target for target, _ in validation}
    assert sorted(validation) == sorted(sample for sample in samples if sample[0] in held)
    assert sorted(training) == sorted(sample for sample in samples if not flat([sample]) & held)


def test_about_a_tenth_of_the_images_is_held_out():
    training, validation = hold_out(Named(singles(5000)))
    assert len(training) + len(validation) == 5000
    assert abs(len(validation) - 500) < 4 * math.sqrt(5000 * 0.1 * 0.9)


@pytest.mark.parametrize("images", range(2, 12))
def test_few_images_still_hold_one_out(images):
    _, validation = hold_out(Named(singles(images)))
    assert len(validation) >= 1


def test_other_data_hold_out_the_same_images():
    """Files of one mixture: what one is scored on, no other is trained on, whatever else they have."""
    samples, others = pairs(300, 60), singles(60)
    scored = {segmented for segmented, *_ in names_of(hold_out(Named(samples))[1])}
    assert not scored & flat(names_of(hold_out(Named(others))[0]))
    scored = flat(names_of(hold_out(Named(others))[1]))
    assert not scored & flat(names_of(hold_out(Named(samples))[0]))


def test_validation_does_not_depend_on_order_or_place():
    samples = pairs(80, 100)
    validation = sorted(names_of(hold_out(Named(samples))[1]))
    assert sorted(names_of(hold_out(Named(samples[::-1]))[1])) == validation
    assert names_of(hold_out(Named(samples, folder="elsewhere"))[1]) == names_of(hold_out(Named(samples))[1])


def test_parts_keep_the_order_of_the_samples():
    training, validation = hold_out(Named(singles(50)))
    for part in (training, validation):
        assert part.rows.tolist() == sorted(part.rows.tolist())


def test_a_selection_is_split_as_data_of_its_own():
    data = Named(singles(100))
    training, validation = hold_out(data.select(range(0, 100, 2)))
    assert sorted([*training.rows, *validation.rows]) == list(range(0, 100, 2))
    assert names_of(validation) == names_of(hold_out(Named(singles(100)[::2]))[1])


def test_builtin_data(builtin_root):
    training, validation = hold_out(PanopticData(builtin_root, "train"))
    assert len(training) + len(validation) == 10
    assert len(validation) >= 1
    assert validation.record(0).file_name not in flat(names_of(training))


@pytest.mark.parametrize("samples", [singles(1), [("1.jpg",)] * 5])
def test_too_few_images(samples):
    message = (
        r"annotations.json has too few images \(1 are segmented\) to hold some out for validation; "
        "give validation data"
    )
    with pytest.raises(DataError, match=message):
        hold_out(Named(samples))
