"""The search's trials as an Optuna study on disk: a view for Optuna's own tools and its dashboard.

The search itself never reads it: its records are the truth, and from them the file is brought up to date, or made anew
where it is missing, damaged or of other trials. Open it with ``optuna-dashboard study.log`` while the search runs or
afterwards, or in Python with ``optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(PATH)))``.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from tune.config import SearchConfig
from tune.study.board import Board, TrialRow
from tune.study.study import create_study, trial_of

STUDY_FILE = "study.log"

logger = logging.getLogger(__name__)


class StudyFile:
    """Keeps ``study.log`` in a search's folder. The study has the search's name.

    Its trials are the sampler's, in order; those that confirm others, or are forked from them, are not in it. User
    attributes have what Optuna has no place for: ``trial`` (the number in the search), ``status``, ``reason`` (may be
    empty) and ``mlflow_run_id``.

    Args:
        folder: of the search.
        config: the search.
        board: its trials.
        run_id: a trial's run in MLflow, if there is one yet.
    """

    def __init__(self, folder: Path, config: SearchConfig, board: Board, run_id: Callable[[int], str | None]) -> None:
        self.path = folder / STUDY_FILE
        self.config = config
        self.board = board
        self.run_id = run_id
        self._is_open = False
        self._failed = False
        self.update()

    def update(self) -> None:
        """Writes what is new on the board; nothing if nothing is. What somebody has deleted or damaged is made anew.

        Where it cannot be written, that is told once, and tried again with the next news: nobody waits for a view.
        """
        try:
            self._write()
            self._failed = False
        except ValueError:  # a line of another process is damaged
            self._make()
            self._write()
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written: %s; the search goes on without it", self.path, error)
            self._failed, self._is_open = True, False

    def _write(self) -> None:
        if not self._is_open:
            # Left by a process that was killed as it wrote: to wait for it takes half a minute, or for ever.
            Path(f"{self.path}.lock").unlink(missing_ok=True)
            if not self._open():
                self._make()
            self._is_open = True
        is_whole = self.path.exists() and self.path.read_bytes().endswith(b"\n")
        if not is_whole or self.config.name not in _names(self._storage):
            self._make()
        rows, trials = self.board.sampled, self._trials()
        for index, (row, known) in enumerate(zip(rows, trials, strict=False)):
            if not known.state.is_finished():
                self._tell(row, known, index)
        for row in rows[len(trials) :]:
            self._add(row)

    def _open(self) -> bool:
        """Reads what is there; returns whether it is of these trials, as far as it goes."""
        if not self.path.exists() or not self.path.read_bytes().endswith(b"\n"):
            return False
        try:
            self._storage = JournalStorage(JournalFileBackend(str(self.path)))
            self._study_id = self._storage.get_study_id_from_name(self.config.name)
        except (ValueError, KeyError, TypeError, AssertionError):  # lines that are damaged, or of another study
            return False
        rows, trials = self.board.sampled, self._trials()
        return len(trials) <= len(rows) and all(map(self._may_become, trials, rows))

    def _may_become(self, known: FrozenTrial, row: TrialRow) -> bool:
        """Whether a trial in the file is this one, now or before."""
        now = trial_of(row, self.config)
        if known.state.is_finished() and (known.state, known.values) != (now.state, now.values):
            return False
        return known.params == now.params and known.intermediate_values.items() <= now.intermediate_values.items()

    def _make(self) -> None:
        self.path.unlink(missing_ok=True)
        self._storage = JournalStorage(JournalFileBackend(str(self.path)))
        self._study_id = self._storage.create_new_study(create_study(self.config, []).directions, self.config.name)

    def _trials(self) -> list[FrozenTrial]:
        """Those in the file; not to be changed."""
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _attributes(self, row: TrialRow) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {"trial": row.number, "status": str(row.status), "reason": row.reason or ""}
        run_id = self.run_id(row.number)
        return attributes if run_id is None else attributes | {"mlflow_run_id": run_id}

    def _add(self, row: TrialRow) -> None:
        trial = trial_of(row, self.config)
        trial.user_attrs = self._attributes(row)
        trial.datetime_start = datetime.now() - timedelta(seconds=row.seconds)
        self._storage.create_new_trial(self._study_id, trial)

    def _tell(self, row: TrialRow, known: FrozenTrial, index: int) -> None:
        """What is new of a trial; its end last, because nothing can follow that."""
        now = trial_of(row, self.config)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, index)
        for step, value in now.intermediate_values.items():
            if step not in known.intermediate_values:
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        for name, attribute in self._attributes(row).items():
            if known.user_attrs.get(name) != attribute:
                self._storage.set_trial_user_attr(trial_id, name, attribute)
        if now.state != known.state:
            self._storage.set_trial_state_values(trial_id, now.state, now.values)


def _names(storage: JournalStorage) -> set[str]:
    return {study.study_name for study in storage.get_all_studies()}
