"""What is wrong with data is said before any compute, and fingerprints tell data apart."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from psalm.data import checks
from psalm.data.checks import check_panoptic, data_fingerprint
from psalm.data.errors import BadImageError, DataError
from psalm.data.images import file_problem


@pytest.fixture
def root(builtin_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(builtin_root, tmp_path / "copy"))


def images(root: Path) -> list[Path]:
    return sorted((root / "train2017").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_whole_data(root):
    check = check_panoptic(root, "train")
    assert (check.images, check.opened, check.bad) == (10, 10, ())


def test_real_images_are_whole(coco_real):
    assert [check_panoptic(coco_real, split).bad for split in ("train", "val")] == [(), ()]


def test_missing_and_truncated_images_are_named_and_counted(root):
    images(root)[2].unlink()
    truncate(images(root)[5])
    with pytest.raises(BadImageError, match=r"000100002\.jpg is missing \(2 of 10 images of the train split"):
        check_panoptic(root, "train")
    check = check_panoptic(root, "train", skip_bad_images=True)
    assert check.bad == ("000000100002.jpg", "000000100006.jpg")


def test_truncated_png(root):
    truncate(root / "annotations" / "panoptic_train2017" / "000000100001.png")
    with pytest.raises(BadImageError, match=r"panoptic PNG .*000100001\.png is truncated or not an image"):
        check_panoptic(root, "train")


def test_nothing_left(root):
    for path in images(root):
        path.unlink()
    with pytest.raises(DataError, match="every image of the train split is missing or truncated"):
        check_panoptic(root, "train", skip_bad_images=True)


def test_annotations_that_disagree_with_the_png(root):
    path = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="which is not in segments_info"):
        check_panoptic(root, "train")


def test_large_data_is_sampled_but_every_file_is_looked_up(root, monkeypatch):
    monkeypatch.setattr(checks, "MAX_FILES_READ", 3)
    assert check_panoptic(root, "train").opened == 3
    images(root)[1].unlink()
    with pytest.raises(BadImageError, match="is missing"):
        check_panoptic(root, "train")


def test_slow_storage_is_not_waited_for(root, monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", -1.0)
    assert check_panoptic(root, "train").opened == 0


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
    assert data_fingerprint(root, "train") == data_fingerprint(builtin_root, "train")
    assert len(data_fingerprint(root, "train")) == 32


def test_fingerprint_tells_data_apart(root):
    before = data_fingerprint(root, "train")
    assert before != data_fingerprint(root, "val")
    truncate(images(root)[0])
    after = data_fingerprint(root, "train")
    assert after != before
    path = root / "annotations" / "panoptic_train2017.json"
    path.write_text(path.read_text().replace("striped circle", "striped square"))
    assert data_fingerprint(root, "train") != after


def test_fingerprint_of_the_builtin_data_is_pinned(builtin_root):
    """Other bytes need another FORMAT, and the vision towers that were trained on them anew."""
    annotations = (builtin_root / "annotations" / "panoptic_val2017.json").read_bytes()
    assert sha256(annotations).hexdigest()[:16] == "846ca054bcb0dd44"
