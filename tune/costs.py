"""Where the time of a search went, from records alone."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from psalm.train.records import Record, metric_history, read_records
from tune.study.board import Board, trial_folder

STEP_SECONDS = "system/step_seconds"
EVALUATION_SECONDS = ("system/eval_seconds", "system/pictures_seconds")
CHECKPOINT_SECONDS = "system/checkpoint_seconds"
PEAK_MEMORY = "system/peak_memory_mb"


@dataclass(frozen=True)
class Work:
    """Seconds that a trial worked, over all its attempts; steps that were run twice count twice."""

    training: float = 0.0
    evaluation: float = 0.0
    checkpointing: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.training + other.training,
            self.evaluation + other.evaluation,
            self.checkpointing + other.checkpointing,
        )


def work_of(records: Iterable[Record]) -> Work:
    """What a run's records say of its work.

    A training log has the mean seconds of the steps since the log before it, or since the run began or went on. Steps
    after the last log of an attempt that was killed are not known.
    """
    training = evaluation = checkpointing = 0.0
    step = 0  # up to which training is counted
    for record in records:
        if record["kind"] == "event" and record["event"] in ("started", "resumed"):
            step = record["step"] if record["event"] == "resumed" else 0
        elif record["kind"] == "metrics":
            values = record["values"]
            if STEP_SECONDS in values:
                training += values[STEP_SECONDS] * (record["step"] - step)
                step = record["step"]
            evaluation += sum(values.get(name, 0.0) for name in EVALUATION_SECONDS)
            checkpointing += values.get(CHECKPOINT_SECONDS, 0.0)
    return Work(training, evaluation, checkpointing)


def cost_objectives(records: Sequence[Record]) -> dict[str, float]:
    """What a run's records say of ``tune.study.objectives.COSTS``; what they do not say is left out.

    ``step_ms`` is the median of the run's logs, each of which has the mean time of a step since the log before it, in
    milliseconds; ``parameters`` are those that are trained; ``peak_memory`` is of the process of rank 0, or of its
    GPU's tensors, in GiB.
    """
    history = metric_history(records)
    found: dict[str, float] = {}
    if STEP_SECONDS in history:
        found["step_ms"] = 1000 * statistics.median(history[STEP_SECONDS].values())
    for record in records:
        if record["kind"] == "tags" and "trainable_parameters" in record["values"]:
            found["parameters"] = float(record["values"]["trainable_parameters"])
    if PEAK_MEMORY in history:
        found["peak_memory"] = max(history[PEAK_MEMORY].values()) / 1024
    return found


def costs(board: Board, folder: Path, concurrency: int) -> dict[str, float]:
    """Seconds of a search by what they went into; ``wall`` x ``concurrency`` is all that could have been used.

    ``trials`` is the time of all attempts: training, evaluation, checkpointing, and ``startup`` (the rest: processes,
    imports, data, model, end). ``waiting`` is what no attempt used. ``overhead_per_trial`` is what was neither training
    nor evaluation.

    Args:
        board: of the search.
        folder: of the search; trials keep their records below it.
        concurrency: how many trials ran at once.
    """
    work = Work()
    for number in board.trials:
        work += work_of(read_records(trial_folder(folder, number)))
    wall = board.elapsed
    trials = sum(row.seconds for row in board.trials.values())
    overhead = wall * concurrency - work.training - work.evaluation
    seconds = {
        "wall": wall,
        "concurrency": concurrency,
        "trials": trials,
        "startup": trials - work.training - work.evaluation - work.checkpointing,
        "training": work.training,
        "evaluation": work.evaluation,
        "checkpointing": work.checkpointing,
        "waiting": wall * concurrency - trials,
        "overhead_per_trial": overhead / max(len(board.trials), 1),
    }
    return {name: round(value, 2) for name, value in seconds.items()}
