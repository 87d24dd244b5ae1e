"""What a process of the probe does: short runs one after another, as a lane does trials.

``python -m tune.plan.probing JOBS RESULTS``: JOBS is a JSON list of the runs' settings. For each, a JSON object is
added to the file RESULTS, in a line: ``run``, the fields of ``ProbedRun``, or ``failed``, the reason; ``seconds`` that
it took; ``ended``, seconds from the process's start to its end.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from psalm.train.arguments import parse_settings
from psalm.train.callbacks import PicturesCallback, RecordsCallback
from psalm.train.measures import peak_memory_mb
from psalm.train.process_state import own_process_state
from psalm.train.records import RunRecords, metric_history, read_records
from psalm.train.train import build_trainer, record_end, record_start
from psalm.train.trainer import PsalmTrainer
from tune.costs import EVALUATION_SECONDS, STEP_SECONDS, work_of
from tune.trials.failures import TrialError, picklable_errors

FIRST_STEPS = 2
"""Steps that are not timed: of a new model they are slower."""
TIMED_STEPS = 8
STEPS_SECONDS = 20.0
"""After so long no more steps are begun, once one has been timed."""
ASKING_SECONDS = 20.0
"""An evaluation that would take longer, by the time of training steps, is made of the first questions alone."""


@dataclass(frozen=True)
class ProbedRun:
    """What a run of some steps, one checkpoint and one evaluation took.

    Args:
        step_seconds: of one step.
        evaluation_seconds: of all questions, in proportion where only some were asked, and pictures.
        questions: that were asked, as a share of all.
        checkpoint_seconds: of one checkpoint; 0 where trials save none.
        overhead_seconds: what the rest of the run took: data, model, end.
        peak_bytes: the most memory that was in use, the process's own included; on a GPU, of tensors there.
    """

    step_seconds: float
    evaluation_seconds: float
    questions: float
    checkpoint_seconds: float
    overhead_seconds: float
    peak_bytes: int


class ShortRun(TrainerCallback):
    """Ends a run after some steps, with a checkpoint before the timed ones and an evaluation at the end."""

    def __init__(self, trainer: PsalmTrainer, *, saves: bool) -> None:
        self.trainer = trainer
        self.saves = saves
        self.questions = 1.0
        self._start = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Time runs."""
        self._start = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """What is due after this step."""
        seconds, step = time.perf_counter() - self._start, state.global_step
        if step == FIRST_STEPS:
            control.should_log, control.should_save = True, self.saves
        is_late = step > FIRST_STEPS and seconds >= STEPS_SECONDS
        if step >= min(FIRST_STEPS + TIMED_STEPS, state.max_steps) or is_late:
            control.should_log = control.should_evaluate = control.should_training_stop = True
            self._ask_less(args, seconds / step / args.train_batch_size)
        return control

    def _ask_less(self, args: TrainingArguments, seconds: float) -> None:
        """Leaves as many questions as there is time for, if one takes as long as a sample in training."""
        evaluations = self.trainer.evaluations.values()
        asked = sum(map(len, evaluations)) // args.world_size
        self.questions = min(1.0, ASKING_SECONDS / (asked * seconds))
        if self.questions < 1:
            for evaluation in evaluations:
                few = max(round(self.questions * len(evaluation)), args.per_device_eval_batch_size)
                evaluation.items = evaluation.items[:few]
            self.questions = sum(map(len, evaluations)) / asked


def probe(settings: Mapping[str, Any], folder: Path) -> ProbedRun:
    """One run of a trial's settings in a folder, as ``psalm.train.train`` makes it, cut short.

    Raises:
        Exception: whatever a training raises.
    """
    start = time.perf_counter()
    saves = settings.get("save_strategy", "no") != "no"
    own = {"output_dir": str(folder), "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no"}
    args = parse_settings({**settings, **own})
    with own_process_state(args.training), RunRecords(folder) as records:
        trainer = build_trainer(args)
        try:
            short = ShortRun(trainer, saves=saves)
            record_start(records, trainer, None)
            for callback in (RecordsCallback(records), PicturesCallback(records, trainer), short):
                trainer.add_callback(callback)
            trainer.train()
            record_end(records, trainer)
            peak = peak_memory_mb()
        finally:
            trainer.accelerator.free_memory()
    seconds = time.perf_counter() - start
    found = list(read_records(folder))
    work = work_of(found)
    history = metric_history(found)
    timed, asking = history[STEP_SECONDS], sum(history[EVALUATION_SECONDS[0]].values())
    return ProbedRun(
        step_seconds=timed[max(timed)],
        evaluation_seconds=asking / short.questions + work.evaluation - asking,
        questions=short.questions,
        checkpoint_seconds=work.checkpointing,
        overhead_seconds=seconds - work.training - work.evaluation - work.checkpointing,
        peak_bytes=int(peak * 2**20),
    )


def main(jobs: Path, results: Path) -> None:
    """All runs; one that fails says why, and the next one begins."""
    folder = results.with_suffix("")
    for settings in json.loads(jobs.read_text(encoding="utf-8")):
        start = time.perf_counter()
        line: dict[str, Any] = {}
        try:
            with picklable_errors():
                line["run"] = dataclasses.asdict(probe(settings, folder))
        except TrialError as error:
            line["failed"] = error.reason
        line["seconds"] = time.perf_counter() - start
        line["ended"] = time.time() - psutil.Process().create_time()
        shutil.rmtree(folder, ignore_errors=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
