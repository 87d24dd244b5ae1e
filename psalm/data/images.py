"""Reading images and panoptic PNGs, writing the latter, and telling a broken file by name.

Letters: H W height and width.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from psalm.data.errors import BadImageError

DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What PIL raises on files that are missing, truncated, or no images."""

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What a whole file of a format ends with, give or take some trailing bytes."""
TAIL_BYTES = 64


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation if it has one.

    Raises:
        BadImageError: missing, truncated, or not an image.
    """
    return _read_rgb(path, "image", upright=True)


def read_segment_map(path: Path) -> np.ndarray:
    """A COCO panoptic PNG as segment ids, int32 [H, W]: id = R + 256 G + 65536 B.

    Raises:
        BadImageError: missing, truncated, or not an image.
    """
    red, green, blue = np.moveaxis(_read_rgb(path, "panoptic PNG", upright=False).astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def write_segment_map(path: Path, segment_map: np.ndarray) -> None:
    """Segment ids int [H, W] as a COCO panoptic PNG, which ``read_segment_map`` reads."""
    rgb = np.stack([segment_map & 255, (segment_map >> 8) & 255, segment_map >> 16], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def file_problem(path: Path, thorough: bool = False) -> str | None:
    """What is wrong with an image file ("is missing", "is truncated ..."), or None.

    The quick check reads header and end of the file and decodes only where the end looks wrong; the thorough one
    decodes every file (JPEGs at an eighth of their size, which still reads all of their data).
    """
    if not path.is_file():
        return "is missing"
    try:
        with Image.open(path) as image:
            marker = END_MARKERS.get(image.format or "")
            if not thorough and marker is not None and marker in _tail(path):
                return None
            image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
    except DECODING_ERRORS as error:
        return f"is truncated or not an image ({_one_line(error)})"
    return None


def _read_rgb(path: Path, what: str, upright: bool) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    except FileNotFoundError:
        raise BadImageError(f"{what} {path} is missing") from None
    except DECODING_ERRORS as error:
        raise BadImageError(f"{what} {path} is truncated or not an image ({_one_line(error)})") from error


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(TAIL_BYTES, path.stat().st_size), 2)
        return file.read()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
