"""Records learning curves for ``python -m tune.simulate``: one real search per training seed, then one small file.

    python experiments/scripts/record_curves.py --output-dir runs/curves

runs ``experiments/search/curves.yaml`` with the training seeds 0 and 1, one after the other, and writes
``experiments/curves/panoptic.jsonl``. Interrupted, the same command goes on: a search that has ended is kept, one that
has not is resumed. What follows ``--`` goes to ``tune/search.py`` when a search begins.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from psalm.train.records import read_records

EXPERIMENTS = Path(__file__).resolve().parents[1]
SEARCH = EXPERIMENTS.parent / "tune" / "search.py"


def main(argv: Sequence[str]) -> int:
    """Search, convert; the exit code of what did not end well, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=EXPERIMENTS / "search" / "curves.yaml", help="The search.")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/curves"), help="Folder of the searches.")
    parser.add_argument("--curves", type=Path, default=EXPERIMENTS / "curves" / "panoptic.jsonl", help="The result.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Of the training; one search each.")
    parser.add_argument("search", nargs="*", help="More options of tune/search.py, after --.")
    options = parser.parse_args(argv)

    name = yaml.safe_load(options.config.read_text())["name"]
    store = f"--tracking-uri=sqlite:///{(options.output_dir / 'mlflow.db').absolute()}"
    for seed in options.seeds:
        output = options.output_dir / f"seed-{seed}"
        begin = [f"--config={options.config}", f"--output-dir={output}", f"--set=seed={seed}", store, *options.search]
        code = record(output / name, begin)
        if code != 0:
            return code
    options.curves.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.call([sys.executable, "-m", "tune.simulation.curves", name, options.curves, store])


def record(folder: Path, begin: Sequence[str]) -> int:
    """One search to its end, from where it is; its exit code.

    Args:
        folder: its own.
        begin: options for one that begins.
    """
    if not folder.exists():
        return subprocess.call([sys.executable, SEARCH, *begin])
    return 0 if has_ended(folder) else subprocess.call([sys.executable, SEARCH, f"--resume={folder}"])


def has_ended(folder: Path) -> bool:
    """Whether all trials of a search have."""
    summary = folder / "search.json"
    if not summary.exists():
        return False
    asked = next(record["values"] for record in read_records(folder) if record["kind"] == "settings")
    planned = asked["num_samples"] or yaml.safe_load((folder / "search.yaml").read_text())["num_samples"]
    trials = json.loads(summary.read_text())["trials"]
    return len(trials) >= planned and all(trial["status"] in ("completed", "failed") for trial in trials)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
