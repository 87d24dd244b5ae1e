"""What is wrong with data is said before any compute, and fingerprints tell data apart."""

import json
import logging
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from psalm.constants import REFERRING
from psalm.data import checks
from psalm.data.checks import DataCheck, check_data, data_fingerprint
from psalm.data.coco_instances import InstanceData, locate_instances
from psalm.data.coco_panoptic import PanopticData
from psalm.data.coco_semantic import SemanticData
from psalm.data.dataset import File, JoinedData, TaskData
from psalm.data.errors import BadImageError, DataError
from psalm.data.images import file_problem

TRAIN = "train split"


@pytest.fixture
def root(builtin_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(builtin_root, tmp_path / "copy"))


class Questions(TaskData):
    """Questions about images, several about one; each has a name of its own in a file ``annotations`` beside them."""

    task = REFERRING

    def __init__(self, folder: Path, images: Sequence[tuple[str, ...]], skip_bad_images: bool = False) -> None:
        super().__init__(len(images), skip_bad_images)
        self.folder = folder
        self.images = images

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        return (self.folder / "annotations",)

    def read_row(self, row: int) -> Any:
        raise NotImplementedError

    def check_row(self, row: int) -> None:
        """All is well."""

    def files_of_row(self, row: int) -> tuple[File, ...]:
        return tuple(File("image", self.folder / name) for name in self.images[row])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of which any question may be asked."""
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "annotations").write_text("[]")
    for name in ("a.png", "b.png", "c.png"):
        Image.effect_noise((64, 48), 50).save(folder / name)
    return folder


def images(root: Path) -> list[Path]:
    return sorted((root / "train2017").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def check(root: Path, skip_bad_images: bool = False) -> DataCheck:
    return check_data(PanopticData(root, "train", skip_bad_images=skip_bad_images), TRAIN)


def fingerprint(root: Path) -> str:
    return data_fingerprint(PanopticData(root, "train"))


def test_whole_data(root):
    assert check(root) == DataCheck(samples=10, opened=10, bad=())


def test_real_images_are_whole(coco_real):
    for split in ("train", "val"):
        for data in (
            PanopticData(coco_real, split),
            SemanticData(coco_real, split),
            InstanceData(*locate_instances(coco_real, split)),
        ):
            assert check_data(data, f"{split} split") == DataCheck(len(data), len(data), ())


def test_missing_and_truncated_images_are_named_and_counted(root):
    images(root)[2].unlink()
    truncate(images(root)[5])
    message = (
        r"image .*000100002\.jpg is missing \(2 of 10 samples of the train split have files that are missing or "
        r"truncated; skip_bad_images leaves them out\)"
    )
    with pytest.raises(BadImageError, match=message):
        check(root)
    assert check(root, skip_bad_images=True).bad == ("000000100002.jpg", "000000100006.jpg")


def test_truncated_png(root):
    truncate(root / "annotations" / "panoptic_train2017" / "000000100001.png")
    with pytest.raises(BadImageError, match=r"panoptic PNG .*000100001\.png is truncated or not an image"):
        check(root)


def test_png_that_breaks_in_the_middle(root):
    """Its end is whole, so that only decoding tells."""
    path = root / "annotations" / "panoptic_train2017" / "000000100000.png"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + content[-50:])
    assert file_problem(path) is None
    with pytest.raises(BadImageError, match=r"panoptic PNG .*000100000\.png is truncated or not an image"):
        check(root)
    assert check(root, skip_bad_images=True).bad == ("000000100000.jpg",)


def test_nothing_left(root):
    for path in images(root):
        path.unlink()
    with pytest.raises(
        DataError, match=r"every image of the train split is missing or truncated, e\.g\. image .*is mis"
    ):
        check(root, skip_bad_images=True)


def test_missing_folder(root):
    data = PanopticData(root, "train")
    shutil.rmtree(root / "train2017")
    with pytest.raises(BadImageError, match=r"is missing \(10 of 10 samples"):
        check_data(data, TRAIN)


def test_annotations_that_disagree_with_the_png(root):
    path = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="which is not in segments_info"):
        check(root)


def test_only_selected_samples_are_checked(root):
    images(root)[2].unlink()
    data = PanopticData(root, "train")
    assert check_data(data.select([0, 1, 3]), TRAIN).samples == 3
    with pytest.raises(BadImageError, match="1 of 2 samples"):
        check_data(data.select([0, 2]), TRAIN)


def test_large_data_is_sampled_but_every_file_is_looked_up(root, monkeypatch, caplog):
    monkeypatch.setattr(checks, "MAX_FILES_READ", 3)
    with caplog.at_level(logging.INFO):
        assert check(root).opened == 3
    assert caplog.messages == ["opened the files of 3 of 10 samples of the train split"]
    images(root)[1].unlink()
    with pytest.raises(BadImageError, match="is missing"):
        check(root)


def test_slow_storage_is_not_waited_for(root, monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", -1.0)
    assert check(root).opened == 0


def test_a_shared_image_is_opened_once_and_spoils_all_its_samples(folder, monkeypatch):
    truncate(folder / "b.png")
    opened = []
    monkeypatch.setattr(checks, "file_problem", lambda path: opened.append(path.name) or file_problem(path))
    questions = [("a.png",), ("b.png",), ("a.png",), ("a.png", "b.png"), ("b.png",)]
    checked = check_data(Questions(folder, questions, skip_bad_images=True), TRAIN)
    assert sorted(opened) == ["a.png", "b.png"]
    assert checked == DataCheck(samples=5, opened=5, bad=("b.png", "a.png"))
    with pytest.raises(BadImageError, match=r"b\.png is truncated .* \(3 of 5 samples of the train split"):
        check_data(Questions(folder, questions), TRAIN)


def test_a_missing_shared_image_is_looked_up_once(folder, monkeypatch):
    asked, is_file = [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path.name) or is_file(path))
    checked = check_data(Questions(folder, [("a.png",), ("x.png",), ("x.png",), ("a.png",)], True), TRAIN)
    assert asked.count("x.png") == 1
    assert checked == DataCheck(samples=4, opened=2, bad=("x.png",))


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_file_problem(tmp_path, suffix, thorough):
    path = tmp_path / f"image{suffix}"
    assert file_problem(path, thorough) == "is missing"
    Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    assert file_problem(path, thorough) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert "is truncated or not an image" in str(file_problem(path, thorough))
    path.write_bytes(b"")
    assert "is truncated or not an image" in str(file_problem(path, thorough))


def test_bytes_after_the_end_are_no_problem(tmp_path):
    path = tmp_path / "image.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert file_problem(path) is None


def test_fingerprint_does_not_depend_on_place_or_time(root, builtin_root):
    for path in images(root):
        path.touch()
    assert fingerprint(root) == fingerprint(builtin_root)
    assert len(fingerprint(root)) == 32


def test_fingerprint_tells_data_apart(root):
    before = fingerprint(root)
    assert before != data_fingerprint(PanopticData(root, "val"))
    truncate(images(root)[0])
    after = fingerprint(root)
    assert after != before
    path = root / "annotations" / "panoptic_train2017.json"
    path.write_text(path.read_text().replace("striped circle", "striped square"))
    assert fingerprint(root) != after


def test_fingerprint_is_the_hash_of_annotations_names_and_sizes(root):
    """Recorded runs are compared by it: another recipe would make all of their data seem to have changed."""
    images(root)[3].unlink()
    annotations = root / "annotations" / "panoptic_train2017.json"
    text = annotations.read_text()
    for name in sorted(path.stem for path in (root / "annotations" / "panoptic_train2017").iterdir()):
        image = root / "train2017" / f"{name}.jpg"
        png = root / "annotations" / "panoptic_train2017" / f"{name}.png"
        size = image.stat().st_size if image.exists() else "missing"
        text += f"\n{image.name}\t{size}\n{png.name}\t{png.stat().st_size}"
    assert fingerprint(root) == sha256(text.encode()).hexdigest()[:32]


def test_fingerprint_tells_selections_apart(folder):
    data = Questions(folder, [("a.png",)] * 3 + [("b.png",)])
    selections = [range(4), [0], [1], [0, 1], [1, 0], [0, 1, 2], [1, 2, 3]]
    assert len({data_fingerprint(data.select(indices)) for indices in selections}) == len(selections)
    assert data_fingerprint(data.select(range(4))) == data_fingerprint(data)
    joined = [JoinedData([data.select(indices), data]) for indices in ([0, 1], [0, 2], [1, 2])]
    assert len({data_fingerprint(each) for each in joined}) == 3


def test_fingerprint_of_the_builtin_data_is_pinned(builtin_root):
    """Other bytes need another FORMAT, and the vision towers that were trained on them anew."""
    annotations = (builtin_root / "annotations" / "panoptic_val2017.json").read_bytes()
    assert sha256(annotations).hexdigest()[:16] == "5cc18ed1730c5bd7"
