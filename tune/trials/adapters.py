"""Ray Tune's view of a search: a searcher, a scheduler and a callback that pass all questions on to its conductor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune.study.board import STEP, Outcome
from tune.trials.conductor import Conductor
from tune.trials.failures import failure_of, write_error


class _Unpickled:
    """Tune pickles these for a restoration that never happens here: a search is rebuilt from its own records."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Jobs(_Unpickled, Searcher):
    """Hands out jobs as Tune trials: ``{"id": str, "number": int, "params": {...}, "changes": {...}}``."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self.conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next job; None while what runs may leave one behind; FINISHED when nothing will."""
        job = self.conductor.next_job()
        if job is None:
            return self.FINISHED if self.conductor.state.finished else None
        return {
            "id": f"{job.number:04d}-{job.attempt}",
            "number": job.number,
            "params": dict(job.params),
            "changes": dict(job.changes),
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """``Decisions`` hears of it."""

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """``Ends`` hears of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Decisions(_Unpickled, FIFOScheduler):
    """Stops the trials that the search's state stops."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self.conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune's question after every evaluation: go on or stop?"""
        job, number = trial.config["id"], trial.config["number"]
        goes_on = self.conductor.evaluated(job, number, result[STEP], result[self.conductor.plan.metric])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class Ends(_Unpickled, Callback):
    """Tells how attempts end, and looks after the search several times a second."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its last result says how; where that is an evaluation, the search has stopped it, and knows."""
        last = trial.last_result
        self._ended(trial, Outcome(last.get("outcome", Outcome.COMPLETED)), last.get("reason"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The lane's own process has failed, or is gone, with its node for example.

        Raises:
            Exception: what failed was the search's own part.
        """
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        if not isinstance(error, RayError):
            raise error
        write_error(self.conductor.plan.trial_folder(trial.config["number"]), error)
        failure = failure_of(error.cause if isinstance(error, RayTaskError) else error)
        self._ended(trial, failure.outcome, failure.reason)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune's loop goes round."""
        self.conductor.look()

    def _ended(self, trial: Trial, outcome: Outcome, reason: str | None) -> None:
        self.conductor.ended(trial.config["id"], trial.config["number"], outcome, reason)
