"""Search spaces: what is proposed is valid by construction, and what cannot be is refused."""

import random
from typing import Any

import optuna
import pytest

from psalm.train.arguments import check_setting, check_settings
from psalm.train.fields import SettingError
from tune.dependents import Dependents
from tune.errors import SearchError
from tune.parameters import Choice, Real, Whole, parse_parameter
from tune.space import SearchSpace

FIXED = {"mm_hidden_dim": 64, "mm_n_heads": 8, "conv_dim": 64, "hidden_dim": 64, "num_heads": 8}


def space_of(spec: dict[str, Any], dependent: dict[str, Any] | None = None, **fixed: Any) -> SearchSpace:
    parameters = {n: parse_parameter(n, s, check_setting) for n, s in spec.items()}
    return SearchSpace.build(
        parameters, FIXED | fixed, Dependents.build(dependent or {}, parameters, {}, check_setting)
    )


def samples(space: SearchSpace, count: int, seed: int = 0) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(setting, the study's own parameters) of many trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append((space.suggest(trial), dict(trial.params)))
        study.tell(trial, 0.0)
    return found


def test_five_hundred_samples_have_no_invalid_head_count_and_all_valid_pairs() -> None:
    space = space_of({"mm_hidden_dim": {"choice": [30, 32, 36, 64]}, "mm_n_heads": {"choice": [2, 3, 5, 8]}})
    pairs = {(s["mm_hidden_dim"], s["mm_n_heads"]) for s, _ in samples(space, 500)}
    assert pairs == {(d, h) for d in (30, 32, 36, 64) for h in (2, 3, 5, 8) if d % h == 0}


def test_a_study_parameter_never_changes_its_choices() -> None:
    space = space_of({"mm_hidden_dim": {"choice": [30, 32, 64]}, "mm_n_heads": {"choice": [2, 3, 8]}})
    names = {name for _, params in samples(space, 100) for name in params}
    assert names == {"mm_hidden_dim", "mm_n_heads[2,3]", "mm_n_heads[2,8]"}
    assert space.conditional


def test_where_all_pairs_are_valid_the_plain_names_are_kept() -> None:
    space = space_of({"mm_hidden_dim": {"choice": [32, 64, 128]}, "mm_n_heads": {"choice": [2, 4, 8]}})
    assert not space.conditional
    assert set(samples(space, 1)[0][1]) == {"mm_hidden_dim", "mm_n_heads"}


def test_three_linked_arguments_are_valid_together() -> None:
    spec = {"hidden_dim": [32, 36, 45], "conv_dim": [32, 36], "num_heads": [4, 8, 9]}
    space = space_of({name: {"choice": values} for name, values in spec.items()})
    found = {(s["conv_dim"], s["hidden_dim"], s["num_heads"]) for s, _ in samples(space, 300)}
    assert found == {(c, d, h) for c in (32, 36) for d in (32, 36, 45) for h in (4, 8, 9) if c % h == 0 and d % h == 0}
    for setting in space.examples():
        check_settings(setting)


@pytest.mark.parametrize(
    ("spec", "fixed", "expected"),
    [
        ({"mm_n_heads": {"choice": [2, 3, 8]}}, {"mm_hidden_dim": 30}, {"mm_n_heads": Choice((2, 3))}),
        ({"mm_n_heads": {"int": [1, 8]}}, {"mm_hidden_dim": 30}, {"mm_n_heads": Choice((1, 2, 3, 5, 6))}),
        ({"mm_hidden_dim": {"choice": [30, 32]}}, {"mm_n_heads": 8}, {"mm_hidden_dim": Choice((32,))}),
        ({"mm_hidden_dim": {"int": [32, 128, 32]}}, {"mm_n_heads": 8}, {"mm_hidden_dim": Whole(32, 128, 32)}),
    ],
)
def test_a_fixed_value_leaves_the_values_that_fit_it(spec: Any, fixed: Any, expected: Any) -> None:
    assert space_of(spec, **fixed).free == expected


SWIN = {"choice": ["base", "large"]}


@pytest.mark.parametrize(
    ("spec", "followers", "valid"),
    [
        (  # a rule's argument follows one that no rule names
            {"swin_type": SWIN, "mm_hidden_dim": {"choice": [32, 36, 64]}},
            {"mm_n_heads": {"base": 8, "large": 9}},
            {("base", 32), ("base", 64), ("large", 36)},
        ),
        (  # two rules meet in what both follow
            {"swin_type": SWIN, "mm_hidden_dim": {"choice": [32, 36]}, "hidden_dim": {"choice": [64, 72]}},
            {"mm_n_heads": {"base": 8, "large": 9}, "num_heads": {"base": 8, "large": 3}},
            {("base", 32, 64), ("base", 32, 72), ("large", 36, 72)},
        ),
        (
            {"swin_type": SWIN, "mm_hidden_dim": {"choice": [64, 128]}},
            {"mm_n_heads": {"base": 8, "large": 16}},
            {("base", 64), ("base", 128), ("large", 64), ("large", 128)},
        ),
    ],
)
def test_rules_see_the_values_that_follow(spec: Any, followers: Any, valid: set[tuple[Any, ...]]) -> None:
    space = space_of(spec, {"swin_type": followers}, conv_dim=72)
    assert {tuple(setting[name] for name in spec) for setting, _ in samples(space, 200)} == valid


def test_a_rule_within_a_leader_and_its_follower_leaves_the_values_that_fit() -> None:
    followers = {"mm_hidden_dim": {"mm_n_heads": {30: 8, 32: 8, 36: 9}}}
    space = space_of({"mm_hidden_dim": {"choice": [30, 32, 36]}}, followers)
    assert space.free == {"mm_hidden_dim": Choice((32, 36))}


def test_no_valid_value_that_follows_is_refused() -> None:
    followers = {"swin_type": {"mm_n_heads": {"base": 7, "large": 5}}}
    with pytest.raises(SearchError) as error:
        space_of({"swin_type": SWIN}, followers)
    assert str(error.value) == (
        "no combination is valid of mm_hidden_dim: 64; mm_n_heads: 7, 5; mm_hidden_dim must be divisible by mm_n_heads"
    )


def test_a_width_that_only_the_vision_tower_knows_restricts_nothing_here() -> None:
    space = space_of({"num_heads": {"choice": [3, 8]}}, conv_dim=None, hidden_dim=None)
    assert space.free == {"num_heads": Choice((3, 8))}
    space = space_of({"num_heads": {"choice": [3, 8]}}, conv_dim=None, hidden_dim=36)
    assert space.free == {"num_heads": Choice((3,))}


@pytest.mark.parametrize(
    ("spec", "fixed"),
    [
        ({"mm_hidden_dim": {"choice": [30, 42]}, "mm_n_heads": {"choice": [4, 8]}}, {}),
        ({"mm_n_heads": {"choice": [4, 8]}}, {"mm_hidden_dim": 30}),
        ({"mm_hidden_dim": {"choice": [30, 42]}}, {"mm_n_heads": 4}),
    ],
)
def test_a_space_without_a_valid_pair_is_refused(spec: Any, fixed: Any) -> None:
    with pytest.raises(SearchError, match=r"mm_hidden_dim: 30.* mm_n_heads: 4.*must be divisible"):
        space_of(spec, **fixed)


def test_a_setting_reaches_the_study_under_its_names_and_comes_back() -> None:
    space = space_of(
        {
            "mm_hidden_dim": {"choice": [30, 64]},
            "mm_n_heads": {"choice": [2, 3, 8]},
            "learning_rate": {"loguniform": [1e-4, 1e-2]},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rng = random.Random(0)
    for _ in range(20):
        wanted = rng.choice(samples(space, 20, seed=rng.randrange(100)))[0]
        study.enqueue_trial(space.study_params(wanted))
        assert space.suggest(study.ask()) == wanted


def test_refusal_names_the_value_outside() -> None:
    space = space_of(
        {"mm_hidden_dim": {"choice": [30, 64]}, "mm_n_heads": {"choice": [2, 3, 8]}, "mm_n_points": {"int": [2, 8, 2]}}
    )
    inside = {"mm_hidden_dim": 64, "mm_n_heads": 8, "mm_n_points": 4}
    assert space.refusal(inside) is None
    assert "mm_n_points = 3" in str(space.refusal(inside | {"mm_n_points": 3}))
    assert "mm_hidden_dim = 30 with mm_n_heads = 8" in str(space.refusal(inside | {"mm_hidden_dim": 30}))


def test_examples_hold_every_value_and_both_ends() -> None:
    space = space_of(
        {
            "mm_hidden_dim": {"choice": [30, 64]},
            "mm_n_heads": {"choice": [2, 3, 8]},
            "learning_rate": {"uniform": [0.001, 0.01]},
            "swin_type": {"choice": ["base", "large"]},
        }
    )
    seen = list(space.examples())
    assert {s["mm_n_heads"] for s in seen} == {2, 3, 8}
    assert {s["swin_type"] for s in seen} == {"base", "large"}
    assert {0.001, 0.01} <= {s["learning_rate"] for s in seen}


def test_description_says_which_list_belongs_to_which_value() -> None:
    space = space_of({"mm_hidden_dim": {"choice": [30, 64]}, "mm_n_heads": {"choice": [2, 3, 8]}})
    assert space.describe()["mm_n_heads"] == "one of 2, 3 for mm_hidden_dim = 30; one of 2, 8 for mm_hidden_dim = 64"


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("mm_n_points", [2, 4], "must be one of choice, int, uniform, loguniform"),
        ("mm_n_points", {"choise": [2, 4]}, "unknown kind 'choise'.*did you mean 'choice'"),
        ("mm_n_points", {"choice": 4}, "needs a list of values"),
        ("mm_n_points", {"choice": []}, "needs a list of values"),
        ("mm_n_points", {"choice": [2, 2]}, "occurs twice"),
        ("mm_n_points", {"choice": [[2]]}, "cannot be a choice"),
        ("mm_n_points", {"int": [4]}, r"int needs \[lowest, highest\]"),
        ("mm_n_points", {"int": [4, 2]}, "lowest < highest"),
        ("mm_n_points", {"int": [1.5, 2]}, r"int needs \[lowest, highest\]"),
        ("learning_rate", {"uniform": [0.1, 0.1]}, "lowest < highest"),
        ("learning_rate", {"uniform": ["a", 0.1]}, "two numbers"),
        ("learning_rate", {"loguniform": [0, 0.1]}, "numbers above 0"),
        ("mm_n_pointz", {"choice": [2]}, "mm_n_pointz is not an argument.*did you mean 'mm_n_points'"),
        ("mm_n_points", {"choice": ["four"]}, "mm_n_points must be a whole number, but got 'four'"),
        ("mm_n_points", {"int": [0, 4]}, "mm_n_points must be at least 1, but got 0"),
        ("mm_n_points", {"uniform": [1, 4]}, "mm_n_points must be a whole number"),
        ("swin_type", {"choice": ["base", "huge"]}, "swin_type must be one of .*base, large, but got 'huge'"),
    ],
)
def test_a_wrong_entry_is_refused(name: str, spec: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_parameter(name, spec, check_setting)


def test_membership_is_by_type_and_range() -> None:
    assert 2 in Choice((2, 4))
    assert True not in Choice((1, 2))
    assert 4 in Whole(2, 8, 2)
    assert 5 not in Whole(2, 8, 2)
    assert 0.5 in Real(0.1, 1.0)
    assert 2.0 not in Real(0.1, 1.0)
