"""How a fork begins where it left its parent: with that one's values and checkpoint.

It only saves time. Without the checkpoint a fork trains from its beginning, with its parent's learning rate up to where
they part, and gets the same values.
"""

import os
import shutil
from pathlib import Path

from psalm.train.checkpoint_files import MANIFEST, checkpoint_folder, fault_of, is_complete
from psalm.train.records import FILE_NAME, RunRecords, metric_history, read_records
from tune.study.board import Fork
from tune.trials.trial import TrialPlan

MACHINE = "system/"
"""What names of metrics begin with that tell of a machine: a fork has not spent its parent's seconds."""


def is_saved(plan: TrialPlan, number: int, step: int) -> bool:
    """Whether a trial has a checkpoint that can be forked; not if its storage does not answer."""
    if plan.storage is None:
        return is_complete(checkpoint_folder(plan.trial_folder(number), step))
    try:
        return plan.storage.has_checkpoint(number, step)
    except OSError:
        return False


def take_over(plan: TrialPlan, number: int, fork: Fork) -> None:
    """Gives a new fork what its parent has recorded and saved; nothing to one that has records.

    Raises:
        OSError: it could not be read or written.
    """
    parent, folder = plan.trial_folder(fork.trial), plan.trial_folder(number)
    if (folder / FILE_NAME).exists():
        return
    values: dict[int, dict[str, float]] = {}
    for name, points in metric_history(read_records(parent)).items():
        for step, value in points.items():
            if step <= fork.step and not name.startswith(MACHINE):
                values.setdefault(step, {})[name] = value
    with RunRecords(folder) as records:
        for step in sorted(values):
            records.metrics(step, values[step])
    if plan.storage is None:
        copy_checkpoint(checkpoint_folder(parent, fork.step), checkpoint_folder(folder, fork.step))
    else:
        plan.storage.take_over(fork.trial, number, fork.step, folder / FILE_NAME)


def copy_checkpoint(source: Path, target: Path) -> bool:
    """A checkpoint in another place, on the same disk without taking room there. Its files are never changed.

    Returns:
        Whether it is there; not if it is being deleted.
    """
    try:
        names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: name == Path(MANIFEST)):  # the manifest last
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _link(source / name, target / name)
    except FileNotFoundError:
        pass
    if fault_of(target, contents=False) is None:
        return True
    shutil.rmtree(target, ignore_errors=True)
    return False


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
