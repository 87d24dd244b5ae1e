"""Held-out samples share no image with those that are trained on, and are the same for the same data."""

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
def test_parts_share_no_image(samples):
    training, validation = map(names_of, hold_out(Named(samples)))
    assert training
    assert validation
    assert not flat(training) & flat(validation)


@pytest.mark.parametrize("samples", [singles(200), SEVERAL], ids=["one", "several"])
def test_every_sample_about_one_image_is_in_one_part(samples):
    training, validation = map(names_of, hold_out(Named(samples)))
    assert sorted(training + validation) == sorted(samples)


@pytest.mark.parametrize("samples", [pairs(80, 100), pairs(40, 400)], ids=["pairs", "loose pairs"])
def test_only_pairs_with_an_image_of_a_validation_pair_are_in_no_part(samples):
    training, validation = map(names_of, hold_out(Named(samples)))
    assert sorted(training) == sorted(sample for sample in samples if not flat([sample]) & flat(validation))


def test_validation_pairs_are_all_those_about_the_images_held_out():
    samples = pairs(300, 60)
    _, validation = map(names_of, hold_out(Named(samples)))
    held = {target for target, _ in validation}
    assert len(held) == 6
    assert sorted(validation) == sorted(sample for sample in samples if sample[0] in held)


@pytest.mark.parametrize(("images", "held"), [(2, 1), (4, 1), (14, 1), (16, 2), (100, 10), (234, 23)])
def test_a_tenth_of_the_images_is_held_out(images, held):
    training, validation = hold_out(Named(singles(images)))
    assert (len(training), len(validation)) == (images - held, held)


def test_a_tenth_of_the_images_and_not_of_the_samples():
    _, validation = hold_out(Named(SEVERAL))
    assert len(flat(names_of(validation))) == 5


def test_a_tenth_of_the_segmented_images_where_most_are_prompts():
    """All pairs are about other images, while hundreds of images only point."""
    samples = [(f"target{number:02}.jpg", f"prompt{number:02}-{copy}.jpg") for number in range(20) for copy in range(9)]
    training, validation = hold_out(Named(samples))
    assert (len(training), len(validation)) == (18 * 9, 2 * 9)


def test_validation_does_not_depend_on_order_or_place():
    samples = pairs(80, 100)
    validation = sorted(names_of(hold_out(Named(samples))[1]))
    assert sorted(names_of(hold_out(Named(samples[::-1]))[1])) == validation
    assert names_of(hold_out(Named(samples, folder="elsewhere"))[1]) == names_of(hold_out(Named(samples))[1])


def test_parts_keep_the_order_of_the_samples():
    training, validation = hold_out(Named(singles(50)))
    for part in (training, validation):
        assert part.rows.tolist() == sorted(part.rows.tolist())


def test_other_images_are_held_out_of_other_data():
    """It is not always, say, the first tenth."""
    first = hold_out(Named(singles(100)))[1].rows
    assert first.tolist() != list(range(10))
    assert first.tolist() != hold_out(Named(singles(102)))[1].rows.tolist()


def test_a_selection_is_split_as_data_of_its_own():
    data = Named(singles(100))
    training, validation = hold_out(data.select(range(0, 100, 2)))
    assert sorted([*training.rows, *validation.rows]) == list(range(0, 100, 2))
    assert names_of(validation) == names_of(hold_out(Named(singles(100)[::2]))[1])


def test_builtin_data(builtin_root):
    training, validation = hold_out(PanopticData(builtin_root, "train"))
    assert (len(training), len(validation)) == (9, 1)
    assert validation.record(0).file_name not in flat(names_of(training))


@pytest.mark.parametrize(
    ("samples", "images"),
    [
        (singles(1), 1),
        ([("1.jpg",)] * 5, 1),
        ([("1.jpg", "2.jpg"), ("2.jpg", "1.jpg")], 2),
        ([(f"{number}.jpg", "shared.jpg") for number in range(30)], 31),
    ],
)
def test_too_few_images(samples, images):
    message = (
        rf"annotations.json has too few images \({images}\) to hold some out for validation that no training sample "
        "shares; give validation data"
    )
    with pytest.raises(DataError, match=message):
        hold_out(Named(samples))
