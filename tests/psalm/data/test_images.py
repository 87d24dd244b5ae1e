"""Segment ids as colours: what is written is what the format says, and is read back."""

from pathlib import Path

import numpy as np
from PIL import Image

from psalm.data.images import read_segment_map, write_segment_map


def test_ids_become_colours(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, (1 << 24) - 1]], dtype=np.int32)
    write_segment_map(tmp_path / "ids.png", ids)
    with Image.open(tmp_path / "ids.png") as image:
        assert np.asarray(image).tolist() == [
            [[0, 0, 0], [255, 0, 0], [0, 1, 0]],
            [[255, 255, 0], [0, 0, 1], [255, 255, 255]],
        ]
    assert np.array_equal(read_segment_map(tmp_path / "ids.png"), ids)
