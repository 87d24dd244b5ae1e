"""What the data of every task have in common: selections, joins, and images that are missing or truncated."""

import logging
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from psalm.constants import REFERRING
from psalm.data import dataset
from psalm.data.coco_panoptic import PanopticData
from psalm.data.dataset import File, JoinedData, Question, TaskData, find_image
from psalm.data.errors import BadImageError, DataError
from psalm.data.examples import create_examples
from psalm.data.images import file_problem, read_image
from psalm.data.samples import ClassInfo
from psalm.data.schedule import TrainingSchedule

CAT, DOG = ClassInfo("cat", True, 1), ClassInfo("dog", True, 2)


class Images(TaskData):
    """Samples about images of a folder, several about one; a record is its row and name."""

    task = REFERRING

    def __init__(
        self, folder: Path, names: Sequence[str], skip_bad_images: bool = False, classes: tuple[ClassInfo, ...] = ()
    ) -> None:
        super().__init__(len(names), skip_bad_images)
        self.folder = folder
        self.names = tuple(names)
        self._classes = classes

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return self._classes

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        return (self.folder / f"{'-'.join(self.names)}.json",)

    def read_row(self, row: int) -> Any:
        read_image(self.folder / self.names[row])
        return row, self.names[row]

    def check_row(self, row: int) -> None:
        if self.names[row] == "wrong.png":
            raise DataError("wrong.png is wrong")
        self.read_row(row)

    def files_of_row(self, row: int) -> tuple[File, ...]:
        return File("image", self.folder / self.names[row]), File("panoptic PNG", self.folder / "map.png")

    def questions_of_row(self, row: int) -> Sequence[Question]:
        return [f"{self.names[row]}?"] * (row + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a to e, a map, and ``bad.png``, which is truncated."""
    for name in ("a", "b", "c", "d", "e", "map", "bad"):
        Image.effect_noise((64, 48), 50).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "bad.png").read_bytes()[:-30])
    return tmp_path


def names_of(data: TaskData) -> list[str]:
    return [data.record(index)[1] for index in range(len(data))]


def test_a_selection_has_the_samples_that_are_named_in_that_order(folder):
    data = Images(folder, ["a.png", "b.png", "c.png", "d.png"])
    chosen = data.select([3, 1])
    assert (len(data), len(chosen), chosen.task) == (4, 2, "referring")
    assert [chosen.record(index) for index in range(2)] == [(3, "d.png"), (1, "b.png")]
    assert chosen.files(0)[0] == ("image", folder / "d.png")
    assert chosen.image_names(1) == ("b.png",)
    assert chosen.questions(1) == ["b.png?"] * 2
    assert chosen.annotation_files == data.annotation_files


def test_a_selection_of_a_selection(folder):
    chosen = Images(folder, ["a.png", "b.png", "c.png", "d.png"]).select([3, 1, 0]).select(iter([2, 0]))
    assert chosen.rows.tolist() == [0, 3]
    assert names_of(chosen) == ["a.png", "d.png"]


def test_nothing_selected(folder):
    assert len(Images(folder, ["a.png"]).select([])) == 0


def test_a_selection_checks_its_own_samples(folder):
    data = Images(folder, ["a.png", "wrong.png"])
    data.select([0]).check(0)
    with pytest.raises(DataError, match="wrong"):
        data.select([1]).check(0)


def test_names_are_those_of_images_only(folder):
    assert Images(folder, ["a.png"]).image_names(0) == ("a.png",)


def test_bad_images_are_counted_once_whether_read_or_checked(folder):
    data = Images(folder, ["bad.png", "a.png", "gone.png", "bad.png"])
    assert data.bad_images == ()
    for index, use in ((3, data.check), (2, data.record), (0, data.record), (1, data.check)):
        if index == 1:
            use(index)
            continue
        with pytest.raises(BadImageError):
            use(index)
    assert data.bad_images == ("bad.png", "gone.png")


def test_other_faults_are_no_bad_images(folder):
    data = Images(folder, ["wrong.png"])
    with pytest.raises(DataError):
        data.check(0)
    assert data.bad_images == ()


def test_bad_images_are_known_to_every_selection_that_has_them(folder):
    data = Images(folder, ["a.png", "bad.png", "gone.png"])
    first, second = data.select([1, 0]), data.select([0, 2])
    with pytest.raises(BadImageError):
        first.record(0)
    assert (data.bad_images, first.bad_images, second.bad_images) == (("bad.png",), ("bad.png",), ())
    with pytest.raises(BadImageError):
        second.record(1)
    assert (data.bad_images, first.bad_images, second.bad_images) == (
        ("bad.png", "gone.png"),
        ("bad.png",),
        ("gone.png",),
    )


@pytest.mark.parametrize("skip", [True, False])
def test_only_skipped_images_are_logged_and_only_once(folder, caplog, skip):
    data = Images(folder, ["a.png", "bad.png", "gone.png", "bad.png"], skip_bad_images=skip)
    for part in (data, data.select([2, 1]), JoinedData([data, data.select([1])])):
        for index in range(len(part)):
            if part.image_names(index) != ("a.png",):
                with pytest.raises(BadImageError):
                    part.record(index)
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(" is ")[0] for message in logged] == (
        [f"skipped: image {folder / name}" for name in ("bad.png", "gone.png")] if skip else []
    )


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_bad_images_met_by_workers_are_replaced_and_counted_here(builtin_root, tmp_path, prompts, start):
    """Also where the data are selections, joined."""
    root = shutil.copytree(builtin_root, tmp_path / "copy")
    (root / "train2017" / "000000100003.jpg").unlink()
    whole = PanopticData(root, "train", skip_bad_images=True)
    joined = JoinedData([whole.select(range(5, 10)), whole.select(range(5))])
    schedule = TrainingSchedule({"panoptic": create_examples(joined, prompts, 32)}, 0, 5, 2)
    loader = DataLoader(schedule, batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context=start)
    samples = [example.sample_id for batch in loader for example in batch]
    assert len(samples) == 10
    assert set(samples) == set(whole.image_ids) - {100003}
    assert joined.bad_images == whole.bad_images == ("000000100003.jpg",)


def test_all_samples_are_evaluated_where_nothing_is_skipped(folder):
    assert Images(folder, ["gone.png", "a.png"]).good_indices() == [0, 1]


def test_samples_with_bad_files_are_not_evaluated(folder):
    data = Images(folder, ["gone.png", "a.png", "b.png", "bad.png"], skip_bad_images=True)
    assert data.good_indices() == [1, 2]
    assert data.bad_images == ("gone.png", "bad.png")


def test_files_are_read_to_their_ends(folder):
    """This one begins and ends as a whole file does."""
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[:500] + data[600:])
    assert file_problem(folder / "a.png") is None
    assert Images(folder, ["a.png", "b.png"], skip_bad_images=True).good_indices() == [1]


def test_good_indices_of_joined_data_are_counted_and_logged_by_their_parts(folder, caplog):
    part = Images(folder, ["gone.png", "a.png", "bad.png"], skip_bad_images=True)
    data = JoinedData([part.select([2, 1]), Images(folder, ["b.png"], skip_bad_images=True)])
    assert data.good_indices() == [1, 2]
    assert (part.bad_images, len(caplog.records)) == (("bad.png",), 1)


def test_good_indices_are_those_of_a_selection(folder):
    data = Images(folder, ["gone.png", "a.png", "b.png", "bad.png"], skip_bad_images=True)
    assert data.select([2, 3, 1]).good_indices() == [0, 2]
    assert data.bad_images == ("bad.png",)  # the other one was not looked at
    joined = JoinedData([data.select([2, 3]), data.select([0, 1])])
    assert joined.good_indices() == [0, 3]
    assert joined.bad_images == ("bad.png", "gone.png")


def test_every_file_is_read_once_however_many_samples_it_has(folder, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(
        dataset, "file_problem", lambda path, thorough: read.append(path.name) or file_problem(path, thorough)
    )
    data = Images(folder, ["a.png", "bad.png", "a.png", "bad.png", "b.png"], skip_bad_images=True)
    assert data.good_indices() == [0, 2, 4]
    assert sorted(read) == ["a.png", "b.png", "bad.png", "map.png"]


def test_a_bad_map_spoils_its_sample(folder):
    (folder / "map.png").unlink()
    data = Images(folder, ["a.png"], skip_bad_images=True)
    message = rf"every image of {folder}/a\.png\.json is missing or truncated, e\.g\. panoptic PNG .*map\.png is"
    with pytest.raises(DataError, match=message):
        data.good_indices()
    assert data.bad_images == ("a.png",)


def test_nothing_left_to_evaluate_on(folder):
    data = Images(folder, ["bad.png", "gone.png"], skip_bad_images=True)
    with pytest.raises(DataError, match=r"every image of .*json is missing or truncated, e\.g\. image .*bad\.png is"):
        data.good_indices()


def joined_data(folder: Path) -> JoinedData:
    """Samples a b | nothing | c | e d."""
    first = Images(folder, ["a.png", "b.png"])
    return JoinedData(
        [first, first.select([]), Images(folder, ["c.png"]), Images(folder, ["d.png", "e.png"]).select([1, 0])]
    )


def test_joined_data_are_one_after_the_other(folder):
    data = joined_data(folder)
    assert (len(data), data.task) == (5, "referring")
    records = [(0, "a.png"), (1, "b.png"), (0, "c.png"), (1, "e.png"), (0, "d.png")]
    assert [data.record(index) for index in range(5)] == records
    for index, (row, name) in enumerate(records):
        assert data.files(index)[0].path == folder / name
        assert data.questions(index) == [f"{name}?"] * (row + 1)
        data.check(index)


def test_joined_data_have_all_files(folder):
    names = ["a.png-b.png", "a.png-b.png", "c.png", "d.png-e.png"]
    assert joined_data(folder).annotation_files == tuple(folder / f"{name}.json" for name in names)


def test_joined_data_may_be_selected_from_and_copied(folder):
    chosen = joined_data(folder).select([4, 0, 2])
    assert names_of(chosen) == ["d.png", "a.png", "c.png"]
    assert names_of(pickle.loads(pickle.dumps(chosen))) == ["d.png", "a.png", "c.png"]


def test_joined_data_skip_as_their_parts_do(folder):
    skipping, strict = (Images(folder, ["a.png"], skip_bad_images=skip) for skip in (True, False))
    assert JoinedData([skipping, skipping]).skip_bad_images
    assert not JoinedData([strict, strict]).skip_bad_images


def test_bad_images_of_joined_data_are_those_of_their_parts(folder):
    parts = [Images(folder, ["a.png", "bad.png"]), Images(folder, ["gone.png", "bad.png"]).select([1, 0])]
    data = JoinedData(parts)
    for index in (1, 3):
        with pytest.raises(BadImageError):
            data.record(index)
    assert data.bad_images == ("bad.png", "gone.png")
    assert [part.bad_images for part in parts] == [("bad.png",), ("gone.png",)]


def test_joined_data_have_the_classes_of_each(folder):
    parts = [Images(folder, ["a.png"], classes=(CAT, DOG)), Images(folder, ["b.png"], classes=(CAT, DOG))]
    assert JoinedData(parts).classes == (CAT, DOG)


def test_different_classes_cannot_be_joined(folder):
    parts = [Images(folder, ["a.png"], classes=(CAT, DOG)), Images(folder, ["b.png"], classes=(DOG, CAT))]
    message = rf"must have the same categories, but these differ: {folder}/a\.png\.json, {folder}/b\.png\.json"
    with pytest.raises(DataError, match=message):
        JoinedData(parts)


def test_an_image_is_read_from_the_first_folder_that_has_it(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "a.png", other / "a.png")
    shutil.copy(folder / "a.png", other / "only.png")
    assert find_image([folder, other], "a.png") == folder / "a.png"
    assert find_image([other, folder], "a.png") == other / "a.png"
    assert find_image([folder, other], "only.png") == other / "only.png"


def test_an_image_that_no_folder_has_is_missing_in_the_first(folder, tmp_path):
    assert find_image([folder, tmp_path / "other"], "none.png") == folder / "none.png"
    assert find_image([folder], "none.png") == folder / "none.png"
