"""A search's file and command line: merged, checked, and refused in one line that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.train.fields import SettingError
from tune.config import SearchConfig, check_data, load_config
from tune.options import DEFAULT_CONFIG
from tune.resources import TrialResources

EXPERIMENTS = DEFAULT_CONFIG.parent


def content(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "s",
        "metric": "eval_pq",
        "num_samples": 4,
        "space": {"mm_n_points": {"choice": [2, 4]}, "learning_rate": {"loguniform": [1e-4, 1e-2]}},
        "baselines": [{"mm_n_points": 4, "learning_rate": 0.001}],
        "arguments": {"max_steps": 30, "eval_steps": 10},
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_content(*assignments: str, _options: dict[str, Any] | None = None, **changes: Any) -> SearchConfig:
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump(content(**changes)))
        return load_config(file, assignments, **(_options or {}))

    return load_content


@pytest.mark.parametrize(
    ("arguments", "metric"),
    [
        ({}, "eval_pq"),
        ({"seg_task": "region"}, "eval_ciou"),
        ({"seg_task": "referring", "refer_expressions": "joined"}, "eval_ciou_joined"),
        ({"cross_image_seg_task": True}, "eval_miou"),
        ({"seg_task": ["semantic", "region"]}, "eval_mean"),
    ],
)
def test_the_metric_is_by_default_what_the_tasks_are_judged_by(
    load: Any, arguments: dict[str, Any], metric: str
) -> None:
    assert load(metric=None, arguments={"max_steps": 5, **arguments}).metric == metric


def test_the_command_line_chooses_another_metric_and_its_direction(load: Any) -> None:
    pairs = {"max_steps": 5, "cross_image_seg_task": True}
    chosen = load(metric="eval_miou", mode="max", arguments=pairs, _options={"metric": "eval_location_error"})
    assert (chosen.metric, chosen.mode) == ("eval_location_error", "min")
    assert load(metric="eval_miou", arguments=pairs).mode == "max"


def test_a_direction_in_which_the_metric_is_worse_is_refused(load: Any) -> None:
    with pytest.raises(SettingError, match="mode = 'min' must be max, as eval_pq is better that way; leave it out"):
        load(metric="eval_pq", mode="min")


def test_a_metric_that_the_tasks_do_not_have_is_refused(load: Any) -> None:
    with pytest.raises(SettingError, match=r"metric = 'eval_pq' must be a metric of every trial: eval_mean, eval_sem"):
        load(metric="eval_pq", arguments={"max_steps": 5, "seg_task": "semantic,region"})


def test_the_default_search_is_the_documented_one() -> None:
    config = load_config(DEFAULT_CONFIG)
    assert (config.name, config.metric, config.num_samples, config.max_concurrent) == ("tiny", "eval_pq", 8, 2)
    assert set(config.space.names) == {"mm_hidden_dim", "mm_n_heads", "mm_n_points", "learning_rate", "swin_type"}
    assert len(config.baselines) == 1
    assert (config.sampler.name, config.sampler.n_startup_trials, config.scheduler.name) == ("tpe", 4, "asha")
    assert config.scheduler.reduction_factor == 3
    assert config.scheduler.grace_period < config.max_steps
    assert config.max_steps % config.arguments["eval_steps"] == 0


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_search_loads_and_is_recorded_as_json(file: Path) -> None:
    config = load_config(file)
    record = json.loads(json.dumps(config.as_record()))
    assert record["resources"]["workers_per_trial"] == config.resources.workers_per_trial
    assert set(record["space"]) == set(config.space.names)


def test_panoptic_takes_real_images(coco_real: Path) -> None:
    config = load_config(
        EXPERIMENTS / "panoptic.yaml", [f"panoptic_json_path={coco_real}", "max_steps=20", "eval_steps=20"]
    )
    assert config.max_steps == 20
    assert config.arguments["panoptic_json_path"] == str(coco_real)


def test_the_command_line_wins_over_the_file(load: Any) -> None:
    config = load(_options={"num_samples": 2, "max_concurrent": 3, "seed": 7}, seed=1, max_concurrent=1)
    assert (config.num_samples, config.max_concurrent, config.seed, config.arguments["seed"]) == (2, 3, 7, 7)


def test_the_trainings_seed_is_the_searchs_unless_given_or_searched(load: Any) -> None:
    assert load(seed=3).arguments["seed"] == 3
    assert load("seed=5", seed=3).arguments["seed"] == 5
    config = load(seed=3, space={"seed": {"choice": [1, 2]}}, baselines=None)
    assert "seed" not in config.arguments
    assert config.seed == 3


def test_setting_a_searched_name_fixes_it_also_in_the_baseline(load: Any) -> None:
    config = load("mm_n_points=2")
    assert config.space.names == ("learning_rate",)
    assert config.arguments["mm_n_points"] == 2
    assert config.baselines == ({"learning_rate": 0.001},)


def test_a_baseline_that_set_rules_out_is_left_out_with_a_note(load: Any) -> None:
    space = {"mm_hidden_dim": {"choice": [32, 64]}, "mm_n_heads": {"choice": [2, 3, 8]}}
    config = load("mm_hidden_dim=30", space=space, baselines=[{"mm_hidden_dim": 64, "mm_n_heads": 8}])
    assert config.baselines == ()
    assert "baseline 1 is left out: mm_n_heads = 8" in config.notes[0]


def test_what_a_baseline_does_not_name_has_its_default(load: Any) -> None:
    space = content()["space"] | {"weight_decay": {"uniform": [0.0, 0.1]}}
    assert load(space=space).baselines == ({"mm_n_points": 4, "learning_rate": 0.001, "weight_decay": 0.0},)


def test_numbers_and_words_are_read_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nmetric: eval_pq\nnum_samples: 1\nspace: {learning_rate: {loguniform: [1e-4, 1e-2]}}\n"
        "arguments: {max_steps: 5, save_strategy: no, skip_bad_images: true}\n"
    )
    config = load_config(file)
    assert config.space.free["learning_rate"].examples()[:2] == (1e-4, 1e-2)
    assert config.arguments["save_strategy"] == "no"
    assert config.arguments["skip_bad_images"] is True


def test_paths_in_the_file_are_relative_to_it_and_reach_trials_absolute(tmp_path: Path, load: Any) -> None:
    (tmp_path / "images").mkdir()
    assert load(arguments={"max_steps": 5, "panoptic_json_path": "images"}).arguments["panoptic_json_path"] == str(
        tmp_path / "images"
    )


def test_paths_on_the_command_line_are_relative_to_the_working_directory(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert load("panoptic_json_path=images").arguments["panoptic_json_path"] == str(tmp_path / "here" / "images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name is missing"),
        ({"name": "a/b"}, "name = 'a/b' must be a plain folder name"),
        ({"metric": 3}, "metric = 3 must be a metric of every trial: eval_pq,"),
        ({"mode": "maximum"}, "mode = 'maximum' must be one of max, min"),
        ({"num_samples": None}, "num_samples is missing"),
        ({"num_samples": 0}, "num_samples = 0 must be a whole number of at least 1"),
        ({"num_samples": True}, "num_samples = True must be a whole number"),
        ({"max_concurrent": "2"}, "max_concurrent = '2' must be a whole number"),
        ({"num_sample": 3}, "num_sample is not a setting of a search.*did you mean 'num_samples'"),
        ({"space": None}, "space is missing"),
        ({"space": ["mm_n_points"]}, "space = .* must be names with values"),
        ({"sampler": {"name": "tpee"}}, "sampler.name = 'tpee' must be one of tpe, random; did you mean 'tpe'"),
        ({"sampler": {"startup": 4}}, "sampler.startup is not a setting"),
        ({"scheduler": {"name": "asha", "reduction_factor": 1}}, "reduction_factor = 1 must be a number above 1"),
        ({"scheduler": {"grace_period": 0}}, "grace_period = 0 must be a whole number of at least 1"),
        ({"resources": {"cpus_per_worker": 0}}, "cpus_per_worker = 0 must be a number above 0"),
        (
            {"resources": {"gpus_per_worker": 1.5}},
            "gpus_per_worker = 1.5 must be 0, a fraction of 1, or a whole number",
        ),
        ({"resources": {"workers_per_trial": 0}}, "workers_per_trial = 0 must be a whole number of at least 1"),
        ({"arguments": {}}, "max_steps is missing"),
        ({"arguments": {"max_steps": -1}}, "max_steps = -1 must be at least 1"),
        ({"arguments": {"max_steps": 9, "eval_strategy": "no"}}, "eval_strategy = no; a search needs evaluations"),
        (
            {"arguments": {"max_steps": 9, "learning_rat": 1}},
            "learning_rat is not an argument.*did you mean 'learning_rate'",
        ),
        ({"arguments": {"max_steps": 9, "learning_rate": 0.1}}, "learning_rate is both searched .* and fixed"),
        ({"arguments": {"max_steps": 9, "output_dir": "x"}}, "output_dir = 'x' cannot be set in a search"),
        ({"arguments": {"max_steps": 9, "fp16": True, "bf16": True}}, "fp16 and bf16 must not both be true"),
        ({"arguments": {"max_steps": 9, "mm_hidden_dim": 30, "mm_n_heads": 8}}, "30 and 8"),
        ({"space": {"output_dir": {"choice": ["a", "b"]}}}, "output_dir cannot be searched"),
        ({"space": {"max_steps": {"choice": [3, 4]}}}, "max_steps is both searched"),
        (
            {"baselines": [{"mm_n_points": 3, "learning_rate": 0.001}]},
            "baseline 1: mm_n_points = 3 is not in the space",
        ),
        (
            {"baselines": [{"mm_n_points": 4, "learning_rate": 1.0}]},
            "baseline 1: learning_rate = 1.0 is not in the space",
        ),
        (
            {"baselines": [{"mm_n_points": 4, "learning_rate": 0.001, "num_queries": 3}]},
            "num_queries = 3, but it is not searched",
        ),
        ({"baselines": [{"mm_n_pointz": 4}]}, "mm_n_pointz is not an argument"),
        ({"baselines": ["best"]}, "baseline 1 = 'best' must hold names with values"),
    ],
)
def test_a_mistake_in_the_file_is_refused(load: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("name: a\nname: b", "'name' stands twice"),
        ("- a", "must hold names with values"),
        ("", "must hold names with values"),
    ],
)
def test_a_file_that_is_no_search_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(SettingError, match=message) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_files_are_tried_once_for_every_searched_word(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr("tune.config.check_inputs", tried.append)
    space = {"swin_type": {"choice": ["base", "large"]}, "mm_n_points": {"choice": [2, 4, 8]}}
    check_data(load(space=space, baselines=None))
    assert [settings["swin_type"] for settings in tried] == ["base", "large"]


def test_resources_are_read(load: Any) -> None:
    config = load(resources={"workers_per_trial": 2, "cpus_per_worker": 3, "gpus_per_worker": 0.5})
    assert config.resources == TrialResources(2, 3, 0.5)
