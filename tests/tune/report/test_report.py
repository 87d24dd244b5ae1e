"""The page of a comparison, in words and in a real browser; it is drawn for any search, however far that came."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tune.made_searches import made_search, made_trial
from tests.tune.recorded_searches import FULL, Made, curve, record_search, twelve_trials
from tune.report.comparison import Search, Trial
from tune.report.plots import TIMES
from tune.report.report import write_report
from tune.report.scales import Scale
from tune.report.search_runs import find_searches, read_search
from tune.report.words import describe_in_markdown, hours, summary
from tune.results import TIMES as OF_A_SEARCH
from tune.study.board import Status
from tune.study.objectives import Objective
from tune.tracking.store import open_store

SERVER = "http://mlflow.example:5000"
CHROMIUM = shutil.which("chromium")
PLOTS = ("best_so_far", "curves", "parallel", "importance", "slices", "pareto", "classes_panoptic", "costs")


@dataclass(frozen=True)
class Written:
    """A report on disk."""

    search: Search
    page: Path
    folder: Path

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report of a recorded search with everything: failures, early stops, runs with new seeds, a server's links."""
    folder = tmp_path_factory.mktemp("report")
    uri = f"sqlite:///{folder}/mlflow.db"
    trials = twelve_trials()
    last = max(made.begins + made.seconds for made in trials)
    trials += [
        Made(trials[number].params, curve(trials[number].values[FULL] + shift, (50, FULL)), last, 300, confirms=number)
        for number in (0, 6)
        for shift in (-0.5, 0.1, 0.4)
    ]
    with pytest.MonkeyPatch.context() as patch:
        record_search(uri, folder / "search", "alpha", trials, patch)
    client = open_store(uri)
    search = replace(read_search(client, uri, *find_searches(client, ["alpha"])), server=SERVER)
    write_report([search], folder / "report.html", folder / "report")
    return Written(search, folder / "report.html", folder / "report")


class Sources(HTMLParser):
    """What a page would load or lead to, and its visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action") and value:
                (self.links if tag == "a" else self.loaded).append(value)


def test_the_page_loads_nothing_and_links_to_runs_only(written: Written) -> None:
    sources = Sources(written.html)
    assert all(source.startswith(("data:", "#")) for source in sources.loaded)
    assert not re.search(r"@import|url\((?!#)", written.html)
    runs = {trial.run_id for trial in written.search.trials.values()} | {written.search.run_id}
    prefix = f"{SERVER}/#/experiments/{written.search.experiment_id}/runs/"
    assert sources.links
    assert all(link.startswith(prefix) and link.removeprefix(prefix) in runs for link in sources.links)
    for trial in written.search.proposed:
        assert prefix + trial.run_id in sources.links


def test_pictures_are_the_page_s(written: Written) -> None:
    assert {path.stem for path in written.folder.iterdir()} == {*PLOTS, "predictions"}
    assert Sources(written.html).tags.count("svg") == len(PLOTS)
    for path in written.folder.iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] >= 700
        assert pixels.std() > 5, f"{path.name} is empty"


def test_every_trial_is_in_the_pictures_that_show_it(written: Written) -> None:
    marked = [re.findall(r'data-trial="0-(\d+)"', svg) for svg in re.findall(r"<svg.*?</svg>", written.html, re.DOTALL)]
    best_so_far, curves, parallel, _, slices, pareto, *_ = ([int(number) for number in each] for each in marked)
    completed = [trial.number for trial in written.search.proposed if trial.row.status == Status.COMPLETED]
    assert sorted(best_so_far) == completed
    assert sorted(curves) == [number for number in range(12) if number != 5], "trial 5 has failed without a value"
    assert sorted(parallel) == list(range(12))
    assert sorted(slices) == sorted(list(range(12)) * 4)
    assert sorted(pareto) == sorted(completed * 3)


def test_all_that_time_goes_into_has_a_colour() -> None:
    assert tuple(TIMES) == OF_A_SEARCH


def test_names_and_reasons_are_no_html(written: Written) -> None:
    assert "person &lt;on foot&gt;" in written.html
    assert "loss is nan at step 12; &lt;last&gt; finite: 3.4" in written.html
    assert "<last>" not in written.html


def in_browser(page: Path, *options: str) -> tuple[str, str]:
    """The page's DOM after its scripts have run, and the browser's log."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'browser'}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--window-size=1400,2000", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


SCRIPT = """
<script>
const shown = {wide: document.documentElement.scrollWidth - innerWidth, drawn: [], order: {}, rows: 0};
for (const svg of document.querySelectorAll("svg")) {
  const box = svg.getBoundingClientRect();
  shown.drawn.push([box.width, box.height, svg.querySelectorAll("path, use").length]);
}
const table = document.querySelector("table"), column = name =>
  [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
const read = place => [...table.tBodies[0].rows].map(row => row.cells[place].dataset.value);
for (const name of ["eval_pq", "status"]) {
  const button = table.tHead.rows[0].cells[column(name)].querySelector("button");
  button.click(); const up = read(column(name));
  button.click(); shown.order[name] = [up, read(column(name))];
}
table.tBodies[0].rows[0].cells[1].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
shown.hot = [...new Set([...document.querySelectorAll(".hot")].map(each => each.dataset.trial))];
shown.pictures = [...document.querySelectorAll("svg")].filter(svg => svg.querySelector(".hot")).length;
const tell = document.createElement("pre"); tell.id = "told"; tell.textContent = JSON.stringify(shown);
document.body.append(tell);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at pages with")
def test_in_a_browser(written: Written, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(written.html.replace("</body>", SCRIPT + "</body>"), encoding="utf-8")
    dom, log = in_browser(page, "--dump-dom")
    assert "CONSOLE" not in log, log
    told = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert told is not None, "the page's script did not run"
    shown = json.loads(told[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert shown["wide"] <= 0, "nothing runs out of a window of 1400 pixels"
    assert len(shown["drawn"]) == len(PLOTS)
    assert all(width > 500 and height > 100 and parts > 10 for width, height, parts in shown["drawn"])
    up, down = shown["order"]["eval_pq"]
    numbers = sorted((float(value) for value in up if value), reverse=False)
    assert [float(value) for value in up if value] == numbers
    assert [float(value) for value in down if value] == numbers[::-1]
    assert up[-1] == down[-1] == "", "what has no value comes last either way"
    assert shown["order"]["status"][0] == sorted(shown["order"]["status"][0])
    assert len(shown["hot"]) == 1
    assert shown["pictures"] >= 3, "a trial that is pointed at is found in several pictures"


def test_the_summary_has_the_answer_how_sure_and_at_what_cost(written: Written) -> None:
    best, baseline = twelve_trials()[6], twelve_trials()[0]
    text = summary(written.search)
    assert text.startswith(f"Trial 6 has the best eval_pq, {best.values[FULL]:.2f} %, with mm_hidden_dim 64, ")
    gain = best.values[FULL] - baseline.values[FULL]
    assert f": {gain:.2f} points more than the baseline (trial 0, {baseline.values[FULL]:.2f} %)." in text
    assert f"Run again with 3 new seeds it has {best.values[FULL]:.2f} on average, {gain:+.2f} against" in text
    assert "different, p = " in text
    assert (
        "12 trials (8 completed, 3 stopped early, 1 failed) took 2.03 CPU-hours, 6 runs with new seeds another" in text
    )


def test_the_note_for_mlflow_is_a_table(written: Written) -> None:
    lines = describe_in_markdown(written.search).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4 + 4}
    assert rows[2].startswith("| 6 | completed | 77.34 | 64 | 8 |")
    assert len(rows) == 2 + 10


PARAMS = {"learning_rate": 1e-3, "swin_type": "base"}
OTHERS = {"learning_rate": 2e-3, "swin_type": "large"}

OBJECTIVES = (Objective("eval_pq", "max"), Objective("step_ms", "min"), Objective("parameters", "min"))
VALUES = [(50.0, 900.0, 1e6), (70.0, 900.0, 2e6), (60.0, 400.0, 2e6), (55.0, 800.0, 2e6)]
"""Of the objectives: trial 1 has the best score, 2 is fast, 0, the baseline, is small; 3 is beaten by 2."""


@pytest.mark.parametrize(("objectives", "front", "panels"), [(2, [1, 2], 1), (3, [1, 2, 0], 3)])
@pytest.mark.filterwarnings("error")
def test_of_several_objectives_the_front_comes_first(
    objectives: int, front: list[int], panels: int, tmp_path: Path
) -> None:
    trials = [made_trial(n, OTHERS if n else PARAMS, {100: values[0]}) for n, values in enumerate(VALUES)]
    trials.append(made_trial(4, OTHERS, {50: 90.0}, Status.PRUNED))
    search = made_search(trials, baseline=0)
    search.board.objectives = OBJECTIVES[:objectives]
    for trial, values in zip(trials, VALUES, strict=False):
        names = (each.name for each in search.board.objectives)
        trial.row.objectives = dict(zip(names, values, strict=False))
    write_report([search], tmp_path / "report.html", tmp_path / "report")
    page = (tmp_path / "report.html").read_text()
    title = "Front of eval_pq (max), step_ms (min), parameters (min)"
    assert re.findall("<h3>(.*?)</h3>", page)[:2] == [", ".join(title.split(", ")[:objectives]), "Ranking"]
    svg = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert sorted(map(int, re.findall(r'data-trial="0-(\d+)"', svg))) == sorted([0, 1, 2, 3] * panels)
    of_front, of_ranking = (part.split("</table>")[0] for part in page.split("<table>")[1:3])
    rows = list(map(int, re.findall(r'data-trial="0-(\d+)"', of_front)))
    assert rows == front + [number for number in [0] if number not in front], "the baseline is beside"
    marked = {row.split('"0-')[1][0] for row in of_ranking.split("<tr ") if "badge front" in row}
    assert marked == set(map(str, front))
    assert (tmp_path / "report" / "front.png").exists()
    beside = "" if 0 in front else "; the baseline is not on it"
    assert f"): trials {', '.join(map(str, front))}{beside}. 5 trials" in summary(search)


STARTED = made_trial(0, PARAMS, {}, Status.RUNNING)
EDGES: dict[str, list[Trial]] = {
    "no trial": [],
    "one that has begun": [STARTED],
    "one value": [made_trial(0, PARAMS, {50: 3.0}, Status.RUNNING)],
    "one completed": [made_trial(0, PARAMS, {100: 3.0})],
    "all failed": [made_trial(n, PARAMS, {}, Status.FAILED) for n in range(3)],
    "the same value": [made_trial(n, {**PARAMS, "seed": n}, {100: 3.0}) for n in range(8)],
    "conditional": [made_trial(n, PARAMS if n % 2 else {"swin_type": "base"}, {100: float(n)}) for n in range(8)],
    "not yet completed": [made_trial(0, PARAMS, {50: 1.0}, Status.PRUNED), made_trial(1, OTHERS, {}, Status.WAITING)],
    "of one word": [made_trial(n, {"swin_type": "base"}, {100: float(n)}) for n in range(3)],
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("baseline", [None, 0])
@pytest.mark.filterwarnings("error")
def test_any_search_has_a_report(edge: str, baseline: int | None, tmp_path: Path) -> None:
    search = made_search(EDGES[edge], mode="min", baseline=baseline)
    write_report([search], tmp_path / "report.html", tmp_path / "report")
    assert summary(search).endswith("CPU-hours.")
    assert describe_in_markdown(search)
    assert not re.search(r"\bnan\b", (tmp_path / "report.html").read_text())


def test_several_searches_share_what_can_be_compared(tmp_path: Path) -> None:
    one = made_search([made_trial(n, PARAMS, {100: float(n)}) for n in range(3)], baseline=0)
    other = made_search([made_trial(n, OTHERS, {100: float(n)}) for n in range(3)])
    third = made_search([made_trial(0, OTHERS, {100: 50.0})])
    third.board.metric = "eval_miou"
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.png").write_bytes(b"")
    write_report([one, other, third], tmp_path / "report.html", tmp_path / "report")
    pictures = {path.stem for path in (tmp_path / "report").iterdir()}
    assert {"best_so_far_eval_pq", "best_so_far_eval_miou", "1_curves", "2_curves", "3_slices"} <= pictures
    assert "old" not in pictures
    marks = set(re.findall(r'data-trial="(\d-\d)"', (tmp_path / "report.html").read_text()))
    assert marks == {"0-0", "0-1", "0-2", "1-0", "1-1", "1-2", "2-0"}


def test_values_lie_on_their_axis() -> None:
    words = Scale.of(["large", "base", None, "base"])
    assert [words.place(value) for value in ("base", "large")] == [0.0, 1.0]
    assert np.isnan(words.place(None))
    heads = Scale.of([8, 2, 4])
    assert [heads.place(value) for value in (2, 4, 8)] == [0.0, 0.5, 1.0]
    rates = Scale.of([1e-4, 1e-2, 1e-3])
    assert rates.place(1e-3) == pytest.approx(0.5)
    assert [text for text, _ in rates.ticks] == ["0.0001", "0.0003", "0.001", "0.003", "0.01"]
    ratios = Scale.of([0.2, 0.4])
    assert ratios.place(0.3) == pytest.approx(0.5)
    many = Scale.of(range(20))
    assert (many.place(19), many.jitter(3)) == (1.0, 0.0)
    flags = Scale.of([True, False])
    assert flags.place(True) == 1.0


@pytest.mark.parametrize(("value", "text"), [(0.0042, "0.0042"), (2.028, "2.03"), (123.4, "123")])
def test_hours_have_sensible_digits(value: float, text: str) -> None:
    assert hours(value) == text
