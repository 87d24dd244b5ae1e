"""What a user gets wrong: one line on stderr that names the setting, the value and the rule; exit code 2; no Ray."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tune.options import DEFAULT_CONFIG, new_folder, parse_options
from tune.search import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line."""
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    output = capsys.readouterr()
    assert code == 2, output
    assert output.out == ""
    assert output.err.index("\n") == len(output.err) - 1, output.err
    assert "Traceback" not in output.err
    return output.err


def config_file(folder: Path, **changes: Any) -> str:
    content = yaml.safe_load(DEFAULT_CONFIG.read_text()) | changes
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "mm_n_pointz=4"], ["mm_n_pointz", "'4'", "did you mean 'mm_n_points'"]),
        (["--set", "mm_n_points=four"], ["mm_n_points", "'four'", "a whole number"]),
        (["--set", "mm_n_points=0"], ["mm_n_points", "0", "at least 1"]),
        (["--set", "learning_rate=-1"], ["learning_rate", "-1", "greater than 0"]),
        (["--set", "swin_type=huge"], ["swin_type", "'huge'", "base, large"]),
        (["--set", "max_steps=0"], ["max_steps", "0", "at least 1"]),
        (["--set", "max_steps"], ["max_steps", "name=value"]),
        (["--set", "output_dir=x"], ["output_dir", "'x'", "cannot be set"]),
        (
            ["--set", "mm_hidden_dim=30", "--set", "mm_n_heads=8"],
            ["mm_hidden_dim", "mm_n_heads", "30", "8", "divisible"],
        ),
        (["--set", "mm_hidden_dim=31"], ["mm_hidden_dim: 31", "mm_n_heads: 2, 4, 8", "divisible"]),
        (["--set", "projector_outdim=7"], ["projector_outdim", "7"]),
        (["--set", "panoptic_json_path=/nowhere"], ["panoptic_json_path", "/nowhere"]),
        (["--set", "model_name_or_path=/nowhere"], ["model_name_or_path", "/nowhere"]),
        (["--set", "deepspeed=nowhere.json"], ["deepspeed", "nowhere.json"]),
        (["--num-samples", "0"], ["--num-samples", "'0'", "at least 1"]),
        (["--num-samples", "two"], ["--num-samples", "'two'", "a whole number"]),
        (["--max-concurrent", "0"], ["--max-concurrent", "'0'", "at least 1"]),
        (["--seed", "-1"], ["--seed", "'-1'", "at least 0"]),
        (["--resources", "gpus_per_worker"], ["--resources", "'gpus_per_worker'", "name=value"]),
        (["--resources", "workers_per_trial=1", "gpus_per_worker=-1"], ["--resources", "gpus_per_worker = -1"]),
        (["--resources", "gpus_per_worker=64"], ["64 GPUs", "there are"]),
        (["--config", "absent.yaml"], ["--config", "absent.yaml", "no such file"]),
        (["--nonsense"], ["--nonsense"]),
        (["--tracking-uri", "http://127.0.0.1:9"], ["tracking URI", "127.0.0.1:9"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_wrong_option(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    message = refused(capsys, *argv)
    for word in words:
        assert word in message


def test_the_search_on_published_weights_names_every_variable_that_it_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PHI_1_5", "MASK2FORMER_SWIN_BASE", "MASK2FORMER_SWIN_LARGE", "COCO"):
        monkeypatch.delenv(name, raising=False)
    assert refused(capsys, "--config", str(DEFAULT_CONFIG.with_name("phi15_swin.yaml"))) == (
        "search.py: not set in the environment: PHI_1_5 (model_name_or_path), "
        "MASK2FORMER_SWIN_BASE, MASK2FORMER_SWIN_LARGE (vision_tower), COCO (panoptic_json_path); export them\n"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"mm_n_pointz": {"choice": [2]}}}, ["mm_n_pointz", "did you mean 'mm_n_points'"]),
        ({"resources": {"gpus_per_worker": 64}}, ["64 GPUs", "there are"]),
        ({"resources": {"cpus_per_worker": 100_000}}, ["100000 CPUs", "there are"]),
    ],
)
def test_a_wrong_file(
    capsys: pytest.CaptureFixture[str], here: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refused(capsys, "--config", config_file(here, **changes))
    for word in words:
        assert word in message


def test_earlier_searches_and_several_objectives(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    content = yaml.safe_load(DEFAULT_CONFIG.read_text())
    del content["metric"], content["mode"]
    file = here / "search.yaml"
    file.write_text(yaml.safe_dump(content | {"objectives": [{"eval_pq": "max"}, {"parameters": "min"}]}))
    message = refused(capsys, "--config", str(file), "--warm-start", "tiny")
    assert "--warm-start tiny: values of several objectives are not taken from earlier searches" in message


def test_a_file_that_does_not_parse(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "bad.yaml").write_text("name: [\n  broken: {")
    assert "bad.yaml is not valid YAML" in refused(capsys, "--config", "bad.yaml")


def test_an_output_folder_that_is_a_file(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "taken").write_text("")
    assert "--output-dir" in refused(capsys, "--output-dir", "taken")


def test_a_refusal_leaves_nothing_of_a_search_behind(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    refused(capsys, "--set", "mm_n_pointz=4")
    assert list(here.iterdir()) == []


def test_as_a_script_from_anywhere_within_seconds_and_without_ray(here: Path) -> None:
    script = DEFAULT_CONFIG.parents[2] / "tune" / "search.py"
    spy = (
        "import runpy, sys\n"
        f"sys.argv = ['search.py', '--set', 'panoptic_json_path=/nowhere']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "finally: print('ray' in sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", spy], cwd=here, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - start < 60  # alone about 7 s; the machine may be busy


def test_help_is_in_full_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = capsys.readouterr().out
    options = ("config", "num-samples", "max-concurrent", "output-dir", "tracking-uri", "seed", "address", "set")
    limits = ("time-budget", "gpu-hours", "cpu-hours", "max-failures", "checkpoint-budget", "keep-best")
    for option in (*options, *limits, "resources", "resume", "storage-path", "plan", "no-probe"):
        assert f"--{option} " in text


def test_defaults(here: Path) -> None:
    options = parse_options([])
    assert options.output_dir == here / "runs"
    assert options.tracking_uri is None
    assert (options.max_failures, options.keep_best, options.resume) == (3, 3, None)
    assert (options.config, options.address) == (DEFAULT_CONFIG, "local")
    assert options.assignments == options.resources == ()


def test_a_taken_folder_gets_a_number(here: Path) -> None:
    for expected in ("tiny", "tiny-2", "tiny-3"):
        assert new_folder(here / "runs", "tiny") == here / "runs" / expected
        assert (here / "runs" / expected).is_dir()


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--time-budget", "soon", "a time above 0 with its units, such as 90m, 8h or 1d12h"),
        ("--time-budget", "0s", "a time above 0"),
        ("--gpu-hours", "none", "a number above 0"),
        ("--cpu-hours", "-1", "a number above 0"),
        ("--checkpoint-budget", "nan", "a number above 0"),
        ("--max-failures", "-1", "a whole number of at least 0"),
        ("--keep-best", "x", "a whole number of at least 0"),
    ],
)
def test_limits_are_checked(capsys: pytest.CaptureFixture[str], option: str, value: str, allowed: str) -> None:
    line = refused(capsys, option, value)
    assert option in line
    assert allowed in line
    assert value in line


def test_gpu_hours_need_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gpus_per_worker is 0" in refused(capsys, "--gpu-hours", "8")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--config", ["other.yaml"]),
        ("--set", ["max_steps=3"]),
        ("--seed", ["4"]),
        ("--metric", ["eval_sq"]),
        ("--resources", ["cpus_per_worker=2"]),
        ("--output-dir", ["elsewhere"]),
        ("--storage-path", ["elsewhere"]),
    ],
)
def test_a_resumed_search_keeps_what_it_was_asked(
    capsys: pytest.CaptureFixture[str], option: str, values: list[str]
) -> None:
    line = refused(capsys, "--resume", "runs/tiny", option, *values)
    assert f"{option} cannot be changed" in line


def test_only_a_search_can_be_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs").mkdir()
    for folder in ("nowhere", "runs"):
        assert "not the folder of a search; give one, for example runs/tiny" in refused(capsys, "--resume", folder)
    assert not (here / "nowhere").exists()


def test_a_storage_that_cannot_be_used_is_refused_and_nothing_is_left(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--storage-path carrier-pigeon://coop" in refused(capsys, "--storage-path", "carrier-pigeon://coop")
    (here / "file").touch()
    assert f"--storage-path {here / 'file'}" in refused(capsys, "--storage-path", str(here / "file"))
    assert list((here / "runs").glob("tiny*")) == []
    refused(capsys, "--storage-path", str(here / "shared"), "--checkpoint-budget", "0.001")
    assert list((here / "runs").glob("tiny*")) == list((here / "shared" / "tiny").iterdir()) == []


def test_room_for_checkpoints_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--checkpoint-budget", "0.001")
    assert "--checkpoint-budget 0.001: the search needs about" in line
    assert "2 trials at a time" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "mm_n_pointz=4"], ["did you mean 'mm_n_points'"]),
        (["--tracking-uri", "http://127.0.0.1:9"], ["tracking URI", "127.0.0.1:9"]),
        (["--checkpoint-budget", "0.001"], ["--checkpoint-budget 0.001: the search needs about"]),
        (["--output-dir", "taken"], ["--output-dir", "taken is no folder that can be written"]),
        (["--storage-path", "taken/below"], ["--storage-path", "taken is no folder that can be written"]),
        (["--resume", "runs/tiny"], ["--plan --resume", "only a new search can be planned"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_plan_refuses_what_a_search_would(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    (here / "taken").touch()
    message = refused(capsys, "--plan", *argv)
    for word in words:
        assert word in message
    assert list(here.iterdir()) == [here / "taken"]


def test_what_a_plan_measures_is_no_matter_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-probe is for --plan" in refused(capsys, "--no-probe")
