"""``tune/compare.py`` and ``tune/register.py`` on a real store: what they write, log, register and refuse."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tune.recorded_searches import record_search, twelve_trials
from tune import compare, register
from tune.study.board import Board, Status, trial_folder
from tune.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Of a search whose best trial has its model."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        return record_search(f"sqlite:///{folder}/mlflow.db", folder / "alpha", "alpha", twelve_trials(), patch)


@pytest.fixture
def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracker.uri)


def parent_of(client: MlflowClient, tracker: Tracker) -> str:
    parent: str = client.get_run(str(tracker.run_id(0))).data.tags["mlflow.parentRunId"]
    return parent


def artifacts(client: MlflowClient, run_id: str, folder: str) -> set[str]:
    return {Path(file.path).name for file in client.list_artifacts(run_id, folder)}


def test_the_report_is_written_logged_and_summed_up(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "of_alpha.html"
    assert compare.main(["alpha", "--tracking-uri", tracker.uri, "--output", str(page)]) == 0
    output = capsys.readouterr().out
    assert "alpha: Trial 6 has the best eval_pq, 77.34 %" in output
    assert f"The report is in {page}, its pictures in {tmp_path / 'out' / 'of_alpha'}" in output
    pictures = {path.name for path in (tmp_path / "out" / "of_alpha").iterdir()}
    assert {"curves.png", "slices.png", "predictions.png"} <= pictures

    parent = client.get_run(parent_of(client, tracker))
    assert artifacts(client, parent.info.run_id, "report") == pictures | {"report.html"}
    assert parent.data.tags["mlflow.note.content"].startswith("Trial 6 has the best eval_pq")
    tags = client.get_experiment(parent.info.experiment_id).tags
    assert tags["mlflow.experiment.primaryMetric.name"] == "eval_pq"
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "true"


def test_a_search_that_ends_has_its_report(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    line = compare.report_search(tracker.uri, parent_of(client, tracker), tmp_path)
    report, view = line.splitlines()
    assert report == f"The report is in {tmp_path / 'report.html'}"
    search = client.get_run(parent_of(client, tracker))
    pages = f"/#/experiments/{search.info.experiment_id}/runs?viewStateShareKey=trials"
    assert view == f"MLflow shows the trials at http://127.0.0.1:5000{pages}"
    tags = client.get_experiment(search.info.experiment_id).tags
    shared = json.loads(tags["mlflow.sharedViewState.trials"])
    assert (shared["orderByKey"], shared["orderByAsc"]) == ("metrics.`eval_pq`", False)
    found = client.search_runs([search.info.experiment_id], shared["searchFilter"])
    assert {run.info.run_id for run in found} == {tracker.run_id(number) for number in range(len(found))}
    known = {f"params.`{name}`" for name in found[0].data.params}
    assert {name for name in shared["selectedColumns"] if name.startswith("params")} <= known
    assert (tmp_path / "report" / "best_so_far.png").is_file()


@pytest.mark.parametrize(
    ("uri", "run_id", "line"),
    [
        ("", None, "No report: MLflow does not have the search yet; bring it there, and then: python tune/compare.py"),
        ("", "0" * 32, "No report: MlflowException: Run with id=000"),
        ("http://127.0.0.1:9", "0" * 32, "No report: TrackingError: tracking URI 'http://127.0.0.1:9': "),
    ],
)
def test_a_report_that_fails_is_told_in_a_line(
    tracker: Tracker, tmp_path: Path, uri: str, run_id: str | None, line: str
) -> None:
    told = compare.report_search(uri or tracker.uri, run_id, tmp_path)
    assert told.startswith(line)
    assert "\n" not in told


def test_what_cannot_be_compared_is_refused_in_a_line(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"sqlite:///{tmp_path}/none.db"
    assert compare.main(["alpha", "--tracking-uri", missing]) == 2
    assert capsys.readouterr().err == (
        f"compare.py: tracking URI {missing!r}: there is no such file; give the search's --tracking-uri\n"
    )
    assert not (tmp_path / "none.db").exists()
    assert compare.main(["alhpa", "--tracking-uri", tracker.uri]) == 2
    assert "did you mean 'alpha'?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        compare.main(["alpha", "--output", "report.pdf"])
    assert "--output report.pdf: the page is HTML" in capsys.readouterr().err


def test_a_model_is_copied_and_registered_version_by_version(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = str(tracker.run_id(6))
    model = tmp_path / "output" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    client.log_param(run_id, "output_dir", str(tmp_path / "output"))
    assert register.main([run_id, "psalm", "--tracking-uri", tracker.uri]) == 0
    assert capsys.readouterr().out == f"models:/psalm/1 is the model of run {run_id}\n"
    assert register.main([run_id, "psalm", "--tracking-uri", tracker.uri, "--model", str(model)]) == 0
    assert "models:/psalm/2" in capsys.readouterr().out
    version = client.get_model_version("psalm", "1")
    assert (version.run_id, version.status) == (run_id, "READY")
    assert artifacts(client, run_id, "model") == {"model.safetensors"}
    source = Path(client.get_model_version_download_uri("psalm", "1").removeprefix("file://"))
    assert (source / "model.safetensors").read_bytes() == b"weights"


def test_a_model_that_is_not_there_is_refused(
    tracker: Tracker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_id = str(tracker.run_id(1))
    assert register.main([run_id, "psalm", "--tracking-uri", tracker.uri]) == 2
    assert f"run {run_id} does not say where its model is; give --model DIR" in capsys.readouterr().err
    assert register.main([run_id, "psalm", "--tracking-uri", tracker.uri, "--model", str(tmp_path / "gone")]) == 2
    assert "gone is no folder: the model was not kept (--keep-best)" in capsys.readouterr().err


def test_kept_models_are_put_into_mlflow_once(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    board = Board("alpha", "eval_pq", "max", 90, 3)
    for number in range(3):
        board.add(number, {})
        board.start(number, 0.0)
        board.finish(number, Status.COMPLETED, 1.0)
    for number in (1, 2):
        model = trial_folder(tmp_path, number) / "model"
        model.mkdir(parents=True)
        (model / "weights").write_text(str(number))
    for _ in range(2):
        assert (
            register.log_models(tracker, board, tmp_path) == "2 models are among the artifacts of their runs in MLflow"
        )
    kept = [artifacts(client, str(tracker.run_id(number)), "model") for number in range(3)]
    assert kept == [set(), {"weights"}, {"weights"}]
    (trial_folder(tmp_path, 2) / "model" / "weights").write_text("other")
    register.log_models(tracker, board, tmp_path)
    assert Path(client.download_artifacts(str(tracker.run_id(2)), "model/weights", str(tmp_path))).read_text() == "2"
