"""What it takes to start a trial: host memory, time, and what is read from disk. On Linux.

Twice in a process of its own, a model is built from a language model's folder and a vision tower's file: first with
nothing of the files in the system's page cache, then with what the first start has left there.

    python -m psalm.tools.make_random_weights WEIGHTS --size full
    python -m psalm.tools.measure_loading WEIGHTS
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psalm.model.checkpoints import build_model

LOOK_SECONDS = 0.002
GB = 1e9
WANTED = 1.2
"""Times the model's own size that loading may take."""


@dataclass(frozen=True)
class Loading:
    """What building one model took.

    Attributes:
        model: bytes of its parameters and buffers.
        peak: bytes of resident memory, at most, above those before; ``anonymous`` and ``mapped`` are the most of its
            two kinds: memory of the process's own, and pages of files, which the system takes back when it needs them.
        read: bytes that came from disk and not from the page cache.
        seconds: from the call to the finished model.
    """

    model: int
    peak: int
    anonymous: int
    mapped: int
    read: int
    seconds: float

    @property
    def ratio(self) -> float:
        """The peak in times the model's size."""
        return self.peak / self.model


def measure(language_model: Path, vision_tower: Path, swin_type: str) -> Loading:
    """Builds a model in this process; libraries are loaded already and do not count."""
    read, start = _read_from_disk(), time.perf_counter()
    with _resident_peaks() as peaks:
        model, _ = build_model(str(language_model), str(vision_tower), swin_type)
    seconds, read = time.perf_counter() - start, _read_from_disk() - read
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return Loading(size, **peaks, read=read, seconds=seconds)


def evict(paths: Iterable[Path]) -> None:
    """Drops files from the page cache; those of a folder, if one is given."""
    for path in paths:
        if path.is_dir():
            evict(path.iterdir())
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _resident_peaks() -> Iterator[dict[str, int]]:
    """The most of each kind of resident memory inside the block, above that at its start; there once it has ended."""
    before = _resident()
    highest = dict(before)
    ended = threading.Event()

    def look() -> None:
        for kind, size in _resident().items():
            highest[kind] = max(highest[kind], size)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            look()

    peaks: dict[str, int] = {}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()
        look()
        peaks |= {kind: size - before[kind] for kind, size in highest.items()}


def _resident() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    anonymous, mapped = sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"]
    return {"peak": anonymous + mapped, "anonymous": anonymous, "mapped": mapped}


def _read_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what it takes to start a trial.")
    parser.add_argument("weights", type=Path, help="Folder as make_random_weights writes it.")
    parser.add_argument("--language_model", type=Path, help="Folder of the language model, by default WEIGHTS/phi.")
    parser.add_argument("--vision_tower", type=Path, help="Its weights, by default WEIGHTS/swin_SIZE.pkl.")
    parser.add_argument("--swin_type", default="base", help="Size of the tower.")
    parser.add_argument("--here", action="store_true", help="Measure once, in this process, and print it as JSON.")
    args = parser.parse_args()
    language_model = args.language_model or args.weights / "phi"
    vision_tower = args.vision_tower or args.weights / f"swin_{args.swin_type}.pkl"
    if args.here:
        sys.stdout.write(json.dumps(dataclasses.asdict(measure(language_model, vision_tower, args.swin_type))) + "\n")
        return
    evict((language_model, vision_tower))
    sys.stdout.write("start   model GB  peak GB  ratio  anonymous GB  mapped GB  read GB  seconds\n")
    for start in ("first", "second"):
        command = [sys.executable, "-m", "psalm.tools.measure_loading", *sys.argv[1:], "--here"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = Loading(**json.loads(output.splitlines()[-1]))
        sizes = f"{found.model / GB:8.3f}  {found.peak / GB:7.3f}  {found.ratio:5.2f}  {found.anonymous / GB:12.3f}"
        others = f"{found.mapped / GB:9.3f}  {found.read / GB:7.3f}  {found.seconds:7.1f}"
        sys.stdout.write(f"{start:6}  {sizes}  {others}\n")
    sys.stdout.write(f"Wanted: a ratio of at most {WANTED}, and that the second start reads nothing.\n")


if __name__ == "__main__":
    main()
