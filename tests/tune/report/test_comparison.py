"""Searches read back from MLflow, and what is computed from them, against computations of their own."""

import dataclasses
import random
import statistics
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tune.recorded_searches import FULL, START, Made, curve, record_search, twelve_trials
from tune.errors import SearchError
from tune.report.comparison import Search, best_so_far, better_when
from tune.report.search_runs import find_searches, read_search, server_address
from tune.report.tables import ranking_table
from tune.report.words import setting_words
from tune.study.board import Fork, Status
from tune.study.objectives import Objective, pareto_front
from tune.tracking.ledger import TrackingError

SEEDS = ((0, -0.8), (0, 0.3), (6, -0.2), (6, 0.4))
"""Trials that are run again, and how far their values are then from the first."""


def trials_and_confirmations() -> list[Made]:
    """The twelve, and runs with new seeds after them."""
    trials = twelve_trials()
    last = max(made.begins + made.seconds for made in trials)
    return trials + [
        Made(trials[number].params, curve(trials[number].values[FULL] + shift, (50, FULL)), last, 300, confirms=number)
        for number, shift in SEEDS
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of three searches: ``alpha`` twice, and ``open``, which has not ended."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        first = twelve_trials()[:1]
        first[0].objectives = {"eval_pq": 60.0, "step_ms": 900.0}
        several = [{"eval_pq": "max"}, {"step_ms": "min"}]
        record_search(uri, folder / "first", "alpha", first, patch, start=START - 1e6, objectives=several)
        record_search(uri, folder / "alpha", "alpha", trials_and_confirmations(), patch)
        still = twelve_trials()[:3]
        still[1].status, still[2].status, still[2].reason = "running", "waiting", "the search was interrupted"
        fork = dataclasses.replace(still[0], fork=Fork(0, 50), changes={"50": 4e-4}, begins=400.0, status="running")
        still.append(fork)
        record_search(uri, folder / "open", "open", still, patch, finished=False, gpus=0.5)
    return uri


@pytest.fixture(scope="module")
def client(store: str) -> MlflowClient:
    return MlflowClient(store)


@pytest.fixture(scope="module")
def alpha(client: MlflowClient, store: str) -> Search:
    (run,) = find_searches(client, ["alpha"])
    return read_search(client, store, run)


def test_what_was_recorded_is_read(alpha: Search) -> None:
    made = trials_and_confirmations()
    assert (alpha.name, alpha.board.name, alpha.status, alpha.started) == ("alpha", "alpha", "FINISHED", START)
    assert list(alpha.trials) == list(range(16))
    statuses = {"completed": Status.COMPLETED, "pruned": Status.PRUNED, "failed": Status.FAILED}
    for number, trial in alpha.trials.items():
        of = made[number]
        assert trial.row.status == statuses[of.status]
        assert dict(trial.row.params) == dict(of.params)
        assert trial.row.values == of.values
        assert (trial.row.reason, trial.row.confirms) == (of.reason, of.confirms)
        assert trial.started == pytest.approx(START + of.begins, abs=1e-3)
        assert trial.ended - trial.started == pytest.approx(of.seconds, abs=2e-3)
    assert [trial.number for trial in alpha.proposed] == list(range(12))
    assert alpha.baseline is alpha.trials[0]
    assert alpha.space.keys() == made[0].params.keys()
    assert (alpha.device, alpha.devices) == ("CPU", 2)


def test_seconds_per_step_are_a_run_s_median_and_the_model_s_size_is_there(alpha: Search) -> None:
    """Its first log holds what starting costs; its last may be of another moment."""
    trial = alpha.trials[0]
    usual = 0.8 + 64 / 1000
    assert trial.measures["system/step_seconds"] == statistics.median([usual + 2.0] + [usual] * 5)
    assert trial.measures["parameters"] == 1_400_000 + 64_000
    assert trial.measures["eval_pq"] == trial.row.last


def test_the_ranking_is_by_final_values_and_the_rest_behind(alpha: Search) -> None:
    made = twelve_trials()
    whole = sorted((n for n in range(12) if made[n].status == "completed"), key=lambda n: -made[n].values[FULL])
    stopped = sorted((n for n in range(12) if made[n].status == "pruned"), key=lambda n: -made[n].values[50])
    assert [trial.number for trial in alpha.ranking] == [*whole, *stopped, 5]
    assert alpha.best is alpha.trials[whole[0]]


def test_best_so_far_over_device_hours(alpha: Search) -> None:
    """Second by second, what all trials have used until then."""
    made = twelve_trials()
    ends = sorted(
        (n for n in range(12) if made[n].status == "completed"), key=lambda n: made[n].begins + made[n].seconds
    )
    expected = []
    for place, number in enumerate(ends):
        end = round(made[number].begins + made[number].seconds)
        cpu_seconds = 2 * sum(of.begins <= second < of.begins + of.seconds for second in range(end) for of in made)
        best = max(made[n].values[FULL] for n in ends[: place + 1])
        expected.append((pytest.approx(cpu_seconds / 3600, abs=1e-4), best, number))
    assert [(hours, best, trial.number) for hours, best, trial in best_so_far(alpha)] == expected
    assert (
        best_so_far(alpha)[-1][0]
        <= alpha.device_hours(alpha.proposed)
        == pytest.approx(2 * sum(of.seconds for of in made) / 3600)
    )


def test_pictures_and_classes_are_those_of_best_and_baseline(alpha: Search) -> None:
    assert alpha.best is not None
    assert set(alpha.predictions) == set(alpha.per_class) == {0, alpha.best.number}
    assert all(png.startswith(b"\x89PNG") for each in alpha.predictions.values() for png in each.values())
    assert alpha.per_class[0]["panoptic"]["sky"]["pq"] != alpha.per_class[alpha.best.number]["panoptic"]["sky"]["pq"]


def test_a_search_that_runs_is_read_from_its_trials(client: MlflowClient, store: str) -> None:
    search = read_search(client, store, *find_searches(client, ["open"]))
    statuses = [trial.row.status for trial in search.proposed]
    assert statuses == [Status.COMPLETED, Status.RUNNING, Status.WAITING, Status.RUNNING]
    made = twelve_trials()[1]
    assert search.trials[1].row.params == made.params, "typed as arguments are"
    assert search.trials[0].row.seconds == pytest.approx(300, abs=0.01)
    assert search.seconds == {}
    assert (search.device, search.devices) == ("GPU", 0.5)


def test_a_fork_is_read_and_shown_with_its_rates(client: MlflowClient, store: str) -> None:
    search = read_search(client, store, *find_searches(client, ["open"]))
    row = search.trials[3].row
    assert (row.fork, row.learning_rate_changes) == (Fork(0, 50), {"50": 4e-4})
    assert row.params == search.trials[0].row.params
    assert search.board.sampled == [search.trials[number].row for number in range(3)]
    run = client.get_run(search.trials[3].run_id)
    assert run.data.tags["forked_from"] == search.trials[0].run_id
    assert run.info.run_name.endswith("lr5.0e-4 base lr4.0e-4@50")
    assert "<td" in (table := ranking_table("open", search))
    assert "0.0005, 0.0004 from 50" in table
    words = setting_words(search.trials[3])
    assert words.endswith("learning_rate 0.0005, swin_type base, learning_rate_changes {50: 0.0004}")


def test_an_argument_that_a_trial_does_not_search_is_not_in_its_setting(
    client: MlflowClient, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has the argument all the same, with the default."""
    trials = twelve_trials()[:2]
    trials[1].params = {name: value for name, value in trials[1].params.items() if name != "mm_n_heads"}
    tracker = record_search(store, tmp_path / "conditional", "conditional", trials, monkeypatch)
    client.log_param(tracker.run_id(1), "mm_n_heads", 8)
    search = read_search(client, store, *find_searches(client, ["conditional"]))
    assert "mm_n_heads" not in search.trials[1].row.params


def test_a_name_means_its_newest_search_and_an_id_one(client: MlflowClient, alpha: Search) -> None:
    (first,) = client.search_runs([alpha.experiment_id], "tags.`mlflow.runName` = 'first'")
    assert [run.info.run_id for run in find_searches(client, ["alpha", first.info.run_id])] == [
        alpha.run_id,
        first.info.run_id,
    ]


def test_several_objectives_are_read_with_their_values(client: MlflowClient, store: str, alpha: Search) -> None:
    (run,) = client.search_runs([alpha.experiment_id], "tags.`mlflow.runName` = 'first'")
    search = read_search(client, store, run)
    assert search.board.objectives == (Objective("eval_pq", "max"), Objective("step_ms", "min"))
    assert search.front == [search.trials[0]]
    assert search.trials[0].row.objectives == {"eval_pq": 60.0, "step_ms": 900.0}
    assert (alpha.board.objectives, alpha.front) == ((), [])


def test_what_is_no_search_is_refused(client: MlflowClient, alpha: Search) -> None:
    with pytest.raises(TrackingError, match=r"no experiment 'alpa'; there are .*alpha.*; did you mean 'alpha'\?"):
        find_searches(client, ["alpa"])
    with pytest.raises(SearchError, match=f"is not a search; give {alpha.run_id}, the search that it belongs to"):
        find_searches(client, [alpha.trials[3].run_id])
    client.create_experiment("empty")
    with pytest.raises(SearchError, match="experiment 'empty' has no search"):
        find_searches(client, ["empty"])


@pytest.mark.parametrize("modes", [("min", "max"), ("max", "max"), ("min", "min"), ("max", "min", "min")])
def test_the_front_is_what_nothing_beats(modes: tuple[str, ...]) -> None:
    draw = random.Random(3)
    points = [tuple(draw.randrange(12) for _ in modes) for _ in range(60)]

    def beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        signs = [1 if mode == "max" else -1 for mode in modes]
        gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = {point for point in points if not any(beats(other, point) for other in points)}
    front = [points[index] for index in pareto_front(points, modes)]
    assert len(front) == len(set(front)), "of equal points one"
    assert set(front) == expected
    first = [point[0] for point in front]
    assert first == sorted(first, reverse=modes[0] == "max"), "best first"


def test_which_way_a_measure_is_better() -> None:
    assert [better_when(name) for name in ("eval_pq", "eval_location_error", "system/step_seconds", "parameters")] == [
        "max",
        "min",
        "min",
        "min",
    ]


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("sqlite:////a/mlflow.db", None),
        ("http://host:5000", "http://host:5000"),
        ("https://user:secret@host/mlflow/", "https://host/mlflow"),
    ],
)
def test_links_lead_to_a_server_and_have_no_password(uri: str, address: str | None) -> None:
    assert server_address(uri) == address
