"""A recorded run as plain files: somebody without MLflow and Ray can run it, and compare with what was recorded."""

import importlib.metadata
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from psalm.train.comparison import ARITHMETIC, INPUTS, MACHINE, Tolerance
from psalm.train.inputs import PATHS
from tune.errors import SearchError
from tune.reproduction.recorded import Record

DISTRIBUTION = "psalm-deformable"
"""The project, as pip knows it."""
RUN_FOLDER = "run"
"""Where ``train.sh`` trains, below the exported folder."""
OF_SEARCHES = ("fsspec", "mlflow", "optuna", "plotly", "pyarrow", "ray")
"""What only ``tune`` needs of the project's dependencies."""
VERSION = "version."


def export(record: Record, folder: Path, tolerance: Tolerance) -> None:
    """Writes a run into a new folder: ``train.sh``, its settings, versions, fingerprints, and what to expect of it.

    Args:
        record: the run.
        folder: made, or empty.
        tolerance: what a run elsewhere may differ by.

    Raises:
        SearchError: the folder has something in it, or cannot be written.
    """
    files = {
        "train.sh": _script(record),
        "config.yaml": yaml.safe_dump(_settings(record), sort_keys=False, allow_unicode=True),
        "constraints.txt": "".join(f"{name}=={version}\n" for name, version in _versions(record).items()),
        "fingerprints.json": json.dumps(_fingerprints(record), indent=2) + "\n",
        "expected.json": json.dumps(_expected(record, tolerance), indent=2, allow_nan=False) + "\n",
        "README.md": _readme(record, tolerance),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SearchError(f"--export {folder}: the folder is not empty; give a new one")
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SearchError(f"--export {folder}: {error.strerror}; give a folder that can be written") from error


def _settings(record: Record) -> dict[str, Any]:
    return {**record.settings, "output_dir": RUN_FOLDER}


def _script(record: Record) -> str:
    """One command, and the one variable of the environment that changes results."""
    workers = record.resources.workers_per_trial
    launched = record.settings["deepspeed"] is not None or workers > 1
    launcher = f"deepspeed --num_accelerators {workers} --module" if launched else "python -m"
    threads = record.tags.get("omp_num_threads", "unset")
    lines = [
        "#!/bin/sh",
        f"# {' '.join(record.name.split())}. More flags may follow; LAUNCH replaces the launcher.",
        "set -eu",
        'cd "$(dirname "$0")"',
        *([] if threads == "unset" else [f"export OMP_NUM_THREADS={shlex.quote(threads)}"]),
        f'exec ${{LAUNCH:-{launcher}}} psalm.train.train --config config.yaml "$@"',
    ]
    return "\n".join(lines) + "\n"


def _versions(record: Record) -> dict[str, str]:
    """Packages as pip knows them; what follows a ``+`` names a build, which not every index has."""
    tags = {name.removeprefix(VERSION): text for name, text in record.tags.items() if name.startswith(VERSION)}
    return {name: text.partition("+")[0] for name, text in sorted(tags.items()) if name != "python"}


def _fingerprints(record: Record) -> dict[str, Any]:
    data, weights = ({n: t for n, t in record.tags.items() if n.startswith(prefix)} for prefix in INPUTS)
    of_sources = ("source_fingerprint", "git_commit", "git_dirty")
    sources = {name: record.tags[name] for name in of_sources if name in record.tags}
    return {"data": data, "weights": weights, "sources": {**sources, "sha256": dict(record.sources)}}


def _expected(record: Record, tolerance: Tolerance) -> dict[str, Any]:
    """What ``psalm.tools.compare_records`` compares with. JSON has no NaN: such points are left out, as in records."""
    history = {
        name: [[step, value] for step, value in points if math.isfinite(value)]
        for name, points in record.history.items()
        if not name.startswith(MACHINE)
    }
    compared = (*ARITHMETIC, *INPUTS)
    return {
        "run_id": record.run_id,
        "name": record.name,
        "stopped_at": record.stopped_at,
        "changes": record.changes,
        "tags": {name: text for name, text in record.tags.items() if name.startswith(compared)},
        "main_metrics": list(record.main_metrics),
        "tolerance": {
            "rtol": tolerance.rtol,
            "atol": tolerance.atol,
            "rtol_source": tolerance.rtol_source,
            "atol_source": tolerance.atol_source,
        },
        "metrics": {name: points for name, points in history.items() if points},
    }


def _readme(record: Record, tolerance: Tolerance) -> str:
    commit = record.tags.get("git_commit")
    at = "" if commit is None else f" at commit `{commit}`"
    if record.tags.get("git_dirty") == "true":
        at += ", which had uncommitted changes then"
    paths = [
        f"- `{name}: {value}`"
        for name in PATHS
        if name != "output_dir" and isinstance(value := record.settings.get(name), str) and Path(value).is_absolute()
    ]
    workers = record.resources.workers_per_trial
    processes = f"{workers} process{'es' if workers > 1 else ''}"
    stopped = (
        []
        if record.stopped_at is None
        else [
            f"The recorded run ended after step {record.stopped_at}; this one goes on to its full length, and is "
            "compared up to there. Stop it when it is past that step if that is all that is wanted."
        ]
    )
    changed = (
        []
        if not record.changes
        else [
            "Its settings changed while it was trained: "
            + ", ".join(f"`{name}` {text}" for name, text in record.changes.items())
            + ". `config.yaml` has the last ones, so equal bits cannot be expected."
        ]
    )
    sections = [
        f"# {record.name}",
        f"Run {record.run_id}, {record.ending}: {processes}, on {record.tags.get('device', 'an unknown device')} "
        f"(processor: {record.tags.get('processor', 'not recorded')}).",
        "## Install",
        f"Python {record.tags.get(f'{VERSION}python', '3.11')}, the project's sources{at}, and what training needs, "
        "at the versions recorded:",
        f"    pip install -c constraints.txt {_requirements()}\n    pip install --no-deps -e PATH_TO_THE_SOURCES",
        "`fingerprints.json` has the hashes of sources, data and weights; the comparison below checks the latter two.",
        "## Adapt",
        "These paths of `config.yaml` are those of the recorded run's machine:\n\n" + "\n".join(paths)
        if paths
        else "`config.yaml` names no path of the recorded run's machine.",
        "## Run",
        f"    sh train.sh\n\nIt writes into `{RUN_FOLDER}`. Flags of the training may follow. As one process, without "
        'DeepSpeed\'s launcher: `LAUNCH="python -m" sh train.sh`.',
        *stopped,
        *changed,
        "## Compare",
        f"    python -m psalm.tools.compare_records {RUN_FOLDER} expected.json",
        "On the same kind of processor, with the same versions, every value is equal bit for bit. Elsewhere, "
        f"on GPUs above all, the curves drift apart; then what counts is {tolerance}. `--rtol` and `--atol` replace "
        "these.",
    ]
    return "\n\n".join(sections) + "\n"


def _requirements() -> str:
    """The project's dependencies by name, but for those of searches alone."""
    required = importlib.metadata.requires(DISTRIBUTION) or []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    return " ".join(sorted(name for name in names if name not in OF_SEARCHES))
