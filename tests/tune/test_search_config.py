"""A search's file and command line: merged, checked, and refused in one line that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.train.arguments import with_defaults
from psalm.train.fields import SettingError
from psalm.train.records import RunRecords
from tune.config import SearchConfig, check_data, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.space.dependents import Dependents
from tune.study.board import Outcome
from tune.study.state import SearchState
from tune.trials.resources import TrialResources

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


def test_several_objectives_are_what_is_searched_for_and_the_first_ranks(load: Any) -> None:
    config = load(metric=None, objectives=[{"eval_pq": "max"}, {"step_ms": "min"}, {"eval_rq": "max"}])
    assert (config.metric, config.mode) == ("eval_pq", "max")
    assert [(each.name, each.mode) for each in config.objectives] == [
        ("eval_pq", "max"),
        ("step_ms", "min"),
        ("eval_rq", "max"),
    ]
    assert config.as_record()["objectives"] == [{"eval_pq": "max"}, {"step_ms": "min"}, {"eval_rq": "max"}]
    assert (config.scheduler.name, config.notes) == ("none", ())
    assert "objectives" not in load().as_record()


def test_who_stops_trials_by_the_first_of_several_objectives_is_told_what_that_means(load: Any) -> None:
    config = load(metric=None, objectives=[{"eval_pq": "max"}, {"parameters": "min"}], scheduler={"name": "median"})
    assert config.scheduler.name == "median"
    assert config.notes == (
        "median stops trials by eval_pq alone: the sampler learns nothing of those, and none of them is on the front",
    )


TWO = [{"eval_pq": "max"}, {"step_ms": "min"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler": {"name": "cmaes"}, "metric": None},
            "name = cmaes searches for one objective, but there are several",
        ),
        ({"metric": "eval_pq"}, "objectives say what is searched for, and so do metric and mode; leave one out"),
        ({"mode": "max"}, "objectives say what is searched for, and so do metric and mode; leave one out"),
        (
            {"_options": {"metric": "eval_rq"}},
            "objectives say what is searched for, and so do --metric eval_rq; leave one out",
        ),
        ({"objectives": []}, "objectives = [] must be two or more, as in [{eval_pq: max}, {step_ms: min}]; for one, "),
        ({"objectives": ["eval_pq", "step_ms"]}, "objectives = ['eval_pq', 'step_ms'] must be two or more, as in"),
        ({"objectives": TWO[::-1]}, "objective 1 = 'step_ms' must be a metric of every trial: eval_pq, eval_pq_things"),
        ({"objectives": TWO[:1] * 2}, "objective 2 = 'eval_pq' must be one of eval_pq_things, eval_pq_stuff, eval_sq"),
        ({"objectives": [*TWO[:1], {"stepms": "min"}]}, "step_ms, parameters, peak_memory; did you mean 'step_ms'?"),
        ({"objectives": [*TWO[:1], {"step_ms": "max"}]}, "objectives.step_ms = 'max' must be min, as it is better"),
        (
            {"objectives": TWO, "arguments": {"max_steps": 30, "eval_steps": 10, "logging_steps": 50}},
            "objectives: step_ms is taken from a trial's logs, but with logging_strategy = steps, logging_steps = 50 "
            "and max_steps = 30 there are none; lower logging_steps",
        ),
    ],
)
def test_wrong_objectives_are_refused(load: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError) as caught:
        load(**({"metric": None, "objectives": TWO} | changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_a_search_that_lists_no_baselines_begins_with_the_recommended_setting(load: Any) -> None:
    space = content()["space"] | {"learning_rate": {"loguniform": [1e-6, 1e-3]}}
    (baseline,) = load(space=space, baselines=None).baselines
    assert baseline == {name: with_defaults({})[name] for name in space}
    space["mm_n_points"] = {"choice": [2, 8]}
    outside = load(space=space, baselines=None)
    assert outside.baselines == ()
    assert "no baseline: the recommended setting is not in the space: mm_n_points = 4" in outside.notes[0]
    assert load(space=space, baselines=[]).notes == ()


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
        (
            {"sampler": {"name": "tpee"}},
            "sampler.name = 'tpee' must be one of tpe, gp, cmaes, random, qmc, grid; did you mean 'tpe'",
        ),
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
        (
            {"arguments": {"max_steps": 9, "eval_strategy": "no"}},
            "eval_strategy = no, but a search needs evaluations; use steps",
        ),
        (
            {"arguments": {"max_steps": 9, "learning_rat": 1}},
            "learning_rat is not an argument.*did you mean 'learning_rate'",
        ),
        ({"arguments": {"max_steps": 9, "learning_rate": 0.1}}, "learning_rate is both searched .* and fixed"),
        ({"arguments": {"max_steps": 9, "output_dir": "x"}}, "output_dir = 'x' cannot be set in a search"),
        ({"arguments": {"max_steps": 9, "fp16": True, "bf16": True}}, "fp16 and bf16 must not both be true"),
        ({"arguments": {"max_steps": 9, "mm_hidden_dim": 30, "mm_n_heads": 8}}, "30 and 8"),
        ({"space": {"output_dir": {"choice": ["a", "b"]}}}, "output_dir cannot be searched"),
        (
            {"space": {"eval_strategy": {"choice": ["steps", "no"]}}, "baselines": None},
            "eval_strategy = no, but a search",
        ),
        ({"dependent": ["swin_type"]}, "dependent = .* must be names with values"),
        ({"dependent": {"swin_type": {}}}, "dependent: swin_type is not searched"),
        (
            {"dependent": {"mm_n_points": {"output_dir": {2: "a", 4: "b"}}}},
            "output_dir = 'a' cannot be set in a search",
        ),
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


def test_files_are_tried_once_for_every_word_that_differs(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr("tune.config.check_inputs", tried.append)
    space = {"swin_type": {"choice": ["base", "large"]}, "mm_n_points": {"choice": [2, 4, 8]}}
    dependent = {"mm_n_points": {"image_folder": {2: "/a", 4: "/a", 8: "/b"}}}
    check_data(load(space=space, dependent=dependent, baselines=None))
    found = [(settings["swin_type"], settings["image_folder"]) for settings in tried]
    assert found == [("base", "/a"), ("base", "/b"), ("large", "/a")]


RESOURCES = {"workers_per_trial": 2, "cpus_per_worker": 3, "gpus_per_worker": 0.5}


def test_resources_are_read(load: Any) -> None:
    assert load(resources=RESOURCES).resources == TrialResources(2, 3, 0.5)


def test_the_command_line_changes_single_resources(load: Any) -> None:
    config = load(resources=RESOURCES, _options={"resources": ["gpus_per_worker=0", "cpus_per_worker = 0.5"]})
    assert config.resources == TrialResources(2, 0.5, 0)
    assert config.as_record()["resources"] == {"workers_per_trial": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("gpus_per_worker", "--resources 'gpus_per_worker' must be name=value"),
        ("gpus_per_worker=1.5", "--resources: gpus_per_worker = 1.5 must be 0, a fraction of 1, or a whole number"),
        ("cpus_per_worker=0", "--resources: cpus_per_worker = 0 must be a number above 0"),
        ("cpus_per_worker=nan", "--resources: cpus_per_worker = nan must be a number above 0"),
        ("cpus_per_worker=all", "--resources: cpus_per_worker = 'all' must be a number above 0"),
        ("workers_per_trial=1.0", "--resources: workers_per_trial = 1.0 must be a whole number of at least 1"),
        (
            "gpu_per_worker=0",
            "--resources: gpu_per_worker is not a setting of a search; known are workers_per_trial, cpus_per_worker, "
            "gpus_per_worker; did you mean 'gpus_per_worker'?",
        ),
    ],
)
def test_a_wrong_resource_on_the_command_line_is_refused(load: Any, option: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        load(_options={"resources": [option]})
    assert str(error.value) == message


def following(**changes: Any) -> dict[str, Any]:
    """A search over both towers, whose weights and batch sizes follow."""
    dependent = {"vision_tower": {"base": "base.pkl", "large": "/w/large.pkl"}, "seed": {"base": 1, "large": 2}}
    return {
        "space": {"swin_type": {"choice": ["base", "large"]}, "mm_n_points": {"choice": [2, 4]}},
        "dependent": {"swin_type": dependent},
        "baselines": [{"swin_type": "base"}, {"swin_type": "large"}],
    } | changes


def test_what_follows_a_searched_argument_is_in_the_trials_and_in_the_record(tmp_path: Path, load: Any) -> None:
    (tmp_path / "base.pkl").touch()
    config = load(**following())
    base, large = (settings for settings in config.examples()[:2])
    assert (base["vision_tower"], base["seed"]) == (str(tmp_path / "base.pkl"), 1)
    assert (large["vision_tower"], large["seed"]) == ("/w/large.pkl", 2)
    assert "seed" not in config.arguments, "the search's own does not stand beside it"
    record = json.loads(json.dumps(config.as_record()))
    assert record["dependent"]["swin_type"]["vision_tower"] == {
        "base": str(tmp_path / "base.pkl"),
        "large": "/w/large.pkl",
    }
    assert load().as_record()["dependent"] == {}


def test_setting_a_leader_fixes_what_follows_it(load: Any) -> None:
    config = load("swin_type=large", **following())
    assert config.dependents == Dependents()
    assert {"swin_type": "large", "vision_tower": "/w/large.pkl", "seed": 2}.items() <= config.arguments.items()
    assert config.baselines == ({"mm_n_points": 4},)
    assert config.notes == (
        "baseline 2 is left out: with what --set fixes it is the same as one before it",
        "num_samples = 4, but there are settings for 2 only: the search ends after those",
    )


def test_setting_a_follower_fixes_it_for_all_trials(load: Any) -> None:
    config = load("vision_tower=/w/x.pkl", **following())
    assert config.dependents.leaders == {"seed": "swin_type"}
    assert {settings["vision_tower"] for settings in config.examples()} == {"/w/x.pkl"}


def test_setting_a_leader_to_a_value_without_an_entry_is_refused_unless_its_followers_are_set(load: Any) -> None:
    with pytest.raises(SettingError, match="seed has no value for swin_type = small, only for base, large"):
        load("swin_type=small", **following())
    config = load("swin_type=small", "vision_tower=/w/s.pkl", "seed=5", **following())
    assert config.arguments["vision_tower"] == "/w/s.pkl"


def test_rules_between_arguments_see_what_follows(load: Any) -> None:
    dependent = {"swin_type": {"bf16": {"base": True, "large": False}, "fp16": {"base": True, "large": False}}}
    with pytest.raises(SettingError, match=r"swin_type = base is not in the space \(one of large\)"):
        load(**following(dependent=dependent))
    dependent = {"swin_type": {"seg_task": {"base": "panoptic", "large": "semantic"}}}
    with pytest.raises(SettingError, match="metric = 'eval_pq' must be a metric of every trial"):
        load(**following(dependent=dependent))


def test_a_baseline_that_names_what_follows_is_refused(load: Any) -> None:
    with pytest.raises(SettingError, match="baseline 1: vision_tower follows swin_type; leave it out"):
        load(**following(baselines=[{"swin_type": "base", "vision_tower": "/w/large.pkl"}]))


def test_variables_in_paths_are_replaced_everywhere(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    monkeypatch.setenv("COCO", "coco")
    monkeypatch.setenv("BASE", "/w/base.pkl")
    monkeypatch.setenv("PHI", "/w/phi")
    dependent = {"swin_type": {"vision_tower": {"base": "$BASE", "large": "${BASE}.large"}}}
    arguments = {"max_steps": 30, "panoptic_json_path": "${COCO}"}
    config = load("model_name_or_path=${PHI}", **following(dependent=dependent, arguments=arguments))
    assert [settings["vision_tower"] for settings in config.examples()[:2]] == ["/w/base.pkl", "/w/base.pkl.large"]
    assert config.arguments["panoptic_json_path"] == str(tmp_path / "coco")
    assert config.arguments["model_name_or_path"] == "/w/phi"
    monkeypatch.setenv("COCO", "builtin")
    assert load(**following(arguments=arguments)).arguments["panoptic_json_path"] == "builtin"


def test_variables_that_are_not_set_are_refused_together_when_files_are_looked_at(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PHI", "BASE", "LARGE"):
        monkeypatch.delenv(name, raising=False)
    dependent = {"swin_type": {"vision_tower": {"base": "${BASE}", "large": "$LARGE/x.pkl"}}}
    config = load(
        **following(
            dependent=dependent, arguments={"max_steps": 5, "model_name_or_path": "${PHI}", "image_folder": "/no"}
        )
    )
    with pytest.raises(SettingError) as error:
        check_data(config)
    assert str(error.value) == (
        "not set in the environment: PHI (model_name_or_path), BASE, LARGE (vision_tower); export them"
    )


def conditional(**changes: Any) -> dict[str, Any]:
    """A search over both projectors, of which one has settings of its own."""
    return {
        "space": {
            "mm_projector_type": {"choice": ["deformable", "swin_conv"]},
            "mm_n_points": {"choice": [2, 4, 8], "when": "mm_projector_type == 'deformable'"},
            "mm_reference_points": {"choice": ["center", "learned"], "when": "mm_projector_type == 'deformable'"},
            "per_device_train_batch_size": {"choice": [2, 4, 8]},
            "gradient_accumulation_steps": {"choice": [1, 2, 4]},
        },
        "dependent": {"mm_reference_points": {"weight_decay": {"center": 0.1, "learned": 0.2}}},
        "require": ["per_device_train_batch_size * gradient_accumulation_steps <= 8"],
        "baselines": [{"mm_projector_type": "swin_conv"}, {"mm_projector_type": "deformable", "mm_n_points": 8}],
        "arguments": {
            "max_steps": 30,
            "eval_steps": 10,
            "mm_n_points": 2,
            "weight_decay": 0.5,
            "mm_reference_points": "learned",
        },
    } | changes


def test_a_baseline_has_what_applies_to_it(load: Any) -> None:
    config = load(**conditional())
    batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert config.baselines == (
        batches | {"mm_projector_type": "swin_conv"},
        batches | {"mm_projector_type": "deformable", "mm_n_points": 8, "mm_reference_points": "learned"},
    )
    trained = [(s["mm_n_points"], s["weight_decay"]) for s in config.examples()[:2]]
    assert trained == [(2, 0.5), (8, 0.2)], "where it is not searched, an argument has its fixed value"


def test_conditions_and_rules_are_in_the_record(load: Any) -> None:
    record = json.loads(json.dumps(load(**conditional()).as_record()))
    assert record["space"]["mm_n_points"] == "one of 2, 4, 8 when mm_projector_type == 'deformable'"
    assert record["require"] == ["per_device_train_batch_size * gradient_accumulation_steps <= 8"]
    assert load().as_record()["require"] == []


def test_setting_what_conditions_are_about_decides_them(load: Any) -> None:
    config = load("mm_projector_type=swin_conv", **conditional())
    assert set(config.space.names) == {"per_device_train_batch_size", "gradient_accumulation_steps"}
    assert config.dependents == Dependents()
    assert config.baselines == ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},)
    assert config.notes == ("baseline 2 is left out: with what --set fixes it is the same as one before it",)
    assert {(s["mm_n_points"], s["weight_decay"]) for s in config.examples()} == {(2, 0.5)}
    config = load("mm_projector_type=deformable", **conditional())
    assert config.space.conditions == {}
    assert [setting["mm_n_points"] for setting in config.baselines] == [2, 8]


def test_setting_a_conditional_argument_fixes_it_in_all_trials(load: Any) -> None:
    config = load("mm_n_points=4", "mm_reference_points=center", **conditional())
    assert config.space.conditions == {}
    assert {(s["mm_n_points"], s["weight_decay"]) for s in config.examples()} == {(4, 0.1)}


def test_what_a_search_changes_by_default_holds_where_an_argument_is_not_searched(load: Any) -> None:
    space = {"mm_n_points": {"choice": [2, 4]}, "eval_strategy": {"choice": ["steps"], "when": "mm_n_points == 4"}}
    assert {s["eval_strategy"] for s in load(space=space, baselines=None).examples()} == {"steps"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"baselines": [{"mm_projector_type": "swin_conv", "mm_n_points": 8}]},
            "baseline 1: mm_n_points = 8, but it is searched only when mm_projector_type == 'deformable'; leave it out",
        ),
        (
            {"baselines": [{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}]},
            "baseline 1: per_device_train_batch_size = 8 with gradient_accumulation_steps = 4 is not in the space; "
            "required: per_device_train_batch_size * gradient_accumulation_steps <= 8",
        ),
        (
            {"require": ["per_device_train_batch_size < batch_size"]},
            "require: per_device_train_batch_size < batch_size: 'batch_size' (column 31) is not an argument",
        ),
        ({"require": [True]}, "require = True must be a condition on arguments, e.g. mm_n_points <= 8"),
        ({"require": "mm_n_points < 4"}, "search.yaml: require = 'mm_n_points < 4' must be a list"),
        (
            {"space": {"learning_rate": {"loguniform": [1e-4, 1e-2], "if": "bf16"}}, "dependent": None},
            "may have a condition besides (when)",
        ),
    ],
)
def test_a_mistake_in_conditions_is_refused(load: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        load(**conditional(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_conditional_search_goes_on_from_its_records(load: Any, tmp_path: Path) -> None:
    """A trial without an argument is of the search; what is proposed next is what would have been."""
    config = load(**conditional(sampler={"n_startup_trials": 4}))

    def run(folder: Path, stops: tuple[int, ...]) -> list[Any]:
        proposed = []
        for until in (*stops, 16):
            with RunRecords(folder) as records:
                state = SearchState(config, records, num_samples=16)
                state.begin()
                for _ in range(len(proposed), until):
                    job = state.next_job()
                    assert job is not None
                    proposed.append(dict(job.params))
                    state.result(job.number, 30, float(job.params.get("mm_n_points", 0)))
                    state.end(job.number, Outcome.COMPLETED)
        return proposed

    whole = run(tmp_path / "whole", ())
    assert whole == run(tmp_path / "resumed", (3, 9))
    assert {len(params) for params in whole} == {3, 5}
    with RunRecords(tmp_path / "whole") as records, pytest.raises(SearchError, match="trial 1 is not of this search"):
        SearchState(load("mm_n_points=2", **conditional()), records, num_samples=16)
