"""A search's runs in MLflow: one parent, one child per trial, fed from the trials' own records.

The records are the truth and MLflow is a view of them: where the store is away, nothing waits and nothing is lost. What
was asked of the tracker is kept in ``<search>/tracking.json``, so that it can be caught up on later: by the search, by
its resumption, or by hand, ``python -m tune.tracking sync runs/tiny``.
"""

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from psalm.train.records import FILE_NAME
from tune.study.board import Fork
from tune.tracking.connection import (
    STORE_ERRORS,
    Patience,
    absolute_uri,
    add_missing_params,
    check_experiment,
    connect,
    describe,
    experiment_id,
    find_or_create,
    milliseconds,
    one_line,
    public_uri,
    refused,
    set_running,
    set_tags,
)
from tune.tracking.delivery import Delivery
from tune.tracking.fingerprint import provenance, source_files
from tune.tracking.ledger import Ledger, Run, TrackingError, run_name

SOURCES_FILE = "sources.json"  # artifact: the hash of every source file
STATUSES = ("FINISHED", "FAILED", "KILLED")
FORKED_TRIAL, FORKED_STEP = "forked_from_trial", "forked_at_step"
"""Tags of a fork, beside ``forked_from``, which is its parent's run."""
PARENT = "search"  # the parent's key in the ledger
_INCOMPLETE = "MLflow's view of %r stays incomplete: %s"

logger = logging.getLogger(__name__)


class Tracker:
    """Keeps MLflow's view of one search.

    Args:
        tracking_uri: MLflow's, e.g. ``sqlite:////abs/mlflow.db`` or ``http://host:5000``.
        search_dir: the search's folder.
        name: of the search: MLflow's experiment.

    Raises:
        ValueError: the folder's ledger is damaged.
    """

    def __init__(self, tracking_uri: str, search_dir: str | Path, name: str) -> None:
        self.uri = absolute_uri(tracking_uri)
        self.search_dir = Path(search_dir).absolute()
        self._ledger = Ledger.load(self.search_dir) or Ledger(self.search_dir, public_uri(self.uri), name)
        if self._ledger.uri != public_uri(self.uri):
            self._ledger.forget_store(public_uri(self.uri))
        self._client: MlflowClient | None = None
        self._experiment: str | None = None
        self._deliveries: dict[str, Delivery] = {}
        self._stuck: set[str] = set()  # runs whose records are refused or damaged
        self._lost: set[str] = set()  # runs that are refused altogether, deleted for example
        self._patience = Patience()
        self._provenance: dict[str, str] = {}

    def check(self) -> None:
        """Connects, and creates what a SQLite store needs.

        Raises:
            TrackingError: within seconds; one line says what is wrong and what to do.
        """
        client = connect(self.uri)
        check_experiment(client, self.uri, self._ledger.name)
        self._client = client

    def start_search(self, config: Mapping[str, Any]) -> str | None:
        """The parent run, made or, in a folder that has one, found again; None while MLflow is away.

        Args:
            config: the search as configured, as JSON. Its ``resources`` also become tags of every trial's run, and its
                ``metric`` names the result.

        Raises:
            TrackingError: another process keeps this search's runs.
        """
        self._ledger.hold()
        sources = source_files()
        self._provenance = provenance(sources)
        self._ledger.sources[self._provenance["source_fingerprint"]] = sources
        run = self._ledger.runs.get(PARENT)
        if run is None:
            tags = {"kind": "search"} | self._provenance
            run = self._ledger.runs[PARENT] = Run(name=self.search_dir.name, started=time.time(), tags=tags)
        run.reopen()
        run.params, run.files, run.described = dict(config), {"search_config.json": dict(config)}, False
        self._ledger.save()
        self._attempt()
        return run.run_id

    def start_trial(
        self,
        number: int,
        folder: str | Path,
        params: Mapping[str, Any],
        confirms: int | None = None,
        fork: Fork | None = None,
    ) -> str | None:
        """A trial's run, made or found again; None while MLflow is away (``run_id`` tells later).

        Args:
            number: of the trial in its search.
            folder: where its records are or will be.
            params: those that differ between trials; the records hold all.
            confirms: the trial whose setting it runs again, if it does.
            fork: where it takes over from another trial, if it does; that one must have been started.
        """
        run = self._ledger.runs.get(str(number))
        if run is None:
            folder = Path(folder).absolute()
            inside = folder.is_relative_to(self.search_dir)
            resources = self._ledger.runs[PARENT].params.get("resources", {})  # a run is repeated with the same
            run = self._ledger.runs[str(number)] = Run(
                name=run_name(number, params),
                started=time.time(),
                folder=str(folder.relative_to(self.search_dir) if inside else folder),
                tags={"kind": "trial", "trial_number": str(number)}
                | ({} if confirms is None else {"kind": "confirmation", "confirms": str(confirms)})
                | ({} if fork is None else {FORKED_TRIAL: str(fork.trial), FORKED_STEP: str(fork.step)})
                | {name: str(value) for name, value in resources.items()}
                | self._provenance,
                params=dict(params),
                forked_from=None if fork is None else str(fork.trial),
            )
        run.reopen()
        self._ledger.save()
        self.sync()
        return run.run_id

    def finish_trial(self, number: int, status: str, reason: str | None = None, early_stopped: bool = False) -> None:
        """Its final status, told to MLflow after all that it recorded.

        Raises:
            ValueError: a status that is none of FINISHED, FAILED, KILLED.
            KeyError: no such trial was started.
        """
        tags = {"early_stopped": "true"} if early_stopped else {}
        self._finish(str(number), status, tags | ({"reason": reason} if reason else {}))
        self.sync()

    def finish_search(self, status: str, summary: Mapping[str, Any]) -> None:
        """The parent's final status and the result; a trial that nobody finished counts as killed.

        Args:
            status: FINISHED, FAILED or KILLED.
            summary: what ``search.json`` holds; ``best`` ({run_id, params, value}) is also put on the parent run, and
                so is ``pareto_front`` (trial numbers), whose trials are tagged ``pareto``.
        """
        for key, run in self._ledger.runs.items():
            if key != PARENT and run.status is None:
                self._finish(key, "KILLED", {"reason": "the search ended before this trial"})
        if "pareto_front" in summary:
            self._tag_front(summary["pareto_front"])
        parent, best = self._ledger.runs[PARENT], summary.get("best") or {}
        if best:
            parent.metrics = {f"best_{parent.params['metric']}": float(best["value"])}
        parent.files = {**parent.files, "search.json": dict(summary)}
        parent.described = False
        tags = {"best_run_id": str(best["run_id"])} if best else {}
        if "pareto_front" in summary:
            tags["pareto_front"] = ", ".join(map(str, summary["pareto_front"]))
        self._finish(PARENT, status, tags)
        if not self._attempt():
            logger.warning("MLflow lacks part of this search; later: python -m tune.tracking sync %s", self.search_dir)
        self._ledger.release()

    def _tag_front(self, front: Collection[int]) -> None:
        """Says of the trials on the front that they are; of those that were and are not any more, that."""
        for key, run in self._ledger.runs.items():
            on_front = key != PARENT and int(key) in front
            if key != PARENT and (on_front or "pareto" in run.final_tags):
                run.add_final_tags({"pareto": str(on_front).lower()})

    def knows(self, number: int) -> bool:
        """Whether a trial was ever started."""
        return str(number) in self._ledger.runs

    def runs(self, number: int) -> bool:
        """Whether a trial was started and not finished since."""
        return self._ledger.runs[str(number)].status is None

    @property
    def search_run_id(self) -> str | None:
        """The parent's run in MLflow, as soon as there is one."""
        return self._ledger.runs[PARENT].run_id

    def run_id(self, number: int) -> str | None:
        """A trial's run in MLflow, as soon as there is one."""
        return self._ledger.runs[str(number)].run_id

    def sync(self) -> bool:
        """Delivers what is new; cheap where nothing is. A store that is away is left alone for a while.

        Returns:
            Whether MLflow now has all that was recorded and asked; what it lacks is kept for later.
        """
        return self._patience.over and self._attempt()

    def _attempt(self) -> bool:
        """One try to deliver everything. It never raises for a store that is away or refuses: the search goes on."""
        try:
            if self._client is None:
                self._client = connect(self.uri)
            for key, run in self._ledger.runs.items():
                if key not in self._lost and PARENT not in self._lost:
                    self._bring(self._client, key, run)
        except (TrackingError, *STORE_ERRORS) as error:
            self._patience.failed(error)
            return False
        self._patience.answered()
        return not self._stuck and not self._lost

    def _bring(self, client: MlflowClient, key: str, run: Run) -> None:
        """One run, up to date. Raises STORE_ERRORS where the store is away; what it refuses is told once."""
        try:
            run_id = run.run_id or self._find_or_create(client, key, run)
            self._describe(client, key, run, run_id)
            arrived = self._deliver(client, key, run, run_id)
            if run.status is not None and run.closed_at != arrived:
                add_missing_params(client, run_id, run.params)
                set_tags(client, run_id, run.final_tags)
                client.set_terminated(run_id, run.status, milliseconds(run.ended or run.started))
                run.closed_at = arrived
                self._ledger.save()
        except MlflowException as error:
            if not refused(error):
                raise
            self._lost.add(key)
            logger.warning(_INCOMPLETE, run.name, one_line(error))

    def _find_or_create(self, client: MlflowClient, key: str, run: Run) -> str:
        if self._experiment is None:
            self._experiment = experiment_id(client, self.uri, self._ledger.name)
        tags = run.tags
        if key != PARENT:
            tags = tags | {"mlflow.parentRunId": str(self._ledger.runs[PARENT].run_id)}
        if run.forked_from is not None and (parent := self._ledger.runs[run.forked_from].run_id) is not None:
            tags = tags | {"forked_from": parent}
        mark = {"search_key": self._ledger.key, "run_key": key}
        run.run_id = find_or_create(client, self._experiment, run.name, run.started, mark, tags)
        self._ledger.save()
        return run.run_id

    def _describe(self, client: MlflowClient, key: str, run: Run, run_id: str) -> None:
        """Its files and, of a search, its parameters; and that it runs again, if it does."""
        if run.stale_tags is not None:
            set_running(client, run_id, run.stale_tags)
            run.stale_tags = None
            self._ledger.save()
        if not run.described:
            if key == PARENT:
                add_missing_params(client, run_id, run.params)
            sources = self._ledger.sources[run.tags["source_fingerprint"]]
            describe(client, run_id, {SOURCES_FILE: sources, **run.files}, run.metrics)
            run.described = True
            self._ledger.save()

    def _deliver(self, client: MlflowClient, key: str, run: Run, run_id: str) -> int:
        """Brings the run's records. Returns the bytes of records that have arrived; -1 if some never will."""
        if run.folder is None:
            return 0
        records = self.search_dir / run.folder / FILE_NAME
        size = records.stat().st_size if records.exists() else 0
        if run.closed_at == size:
            return size
        if key not in self._deliveries:
            self._deliveries[key] = Delivery(client, run_id, records.parent)
        if key not in self._stuck:
            try:
                self._deliveries[key].deliver()
            except (MlflowException, ValueError) as error:
                if isinstance(error, MlflowException) and not refused(error):
                    raise
                self._stuck.add(key)
                logger.warning(_INCOMPLETE, run.name, one_line(error))
        return -1 if key in self._stuck else self._deliveries[key].size

    def _finish(self, key: str, status: str, tags: dict[str, str]) -> None:
        if status not in STATUSES:
            raise ValueError(f"status {status!r} of run {key!r} is none of {', '.join(STATUSES)}")
        self._ledger.runs[key].close(status, tags, time.time())
        self._ledger.save()
