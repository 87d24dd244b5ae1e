"""Search spaces: what is proposed is valid by construction, and what cannot be is refused."""

import random
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import optuna
import pytest

from psalm.train.arguments import argument_fields, check_setting, check_settings, with_defaults
from psalm.train.fields import SettingError
from tune.errors import SearchError
from tune.space.dependents import Dependents
from tune.space.expressions import Expression
from tune.space.parameters import Choice, Real, Whole, parse_parameter, read_space
from tune.space.space import SearchSpace

FIXED = with_defaults(
    {
        **{"mm_hidden_dim": 64, "mm_n_heads": 8, "conv_dim": 64, "hidden_dim": 64, "num_heads": 8},
        **{"mm_reference_points": "center", "num_queries": 4},
    }
)


def space_of(
    spec: dict[str, Any], dependent: dict[str, Any] | None = None, require: Sequence[str] = (), **fixed: Any
) -> SearchSpace:
    parameters, conditions = read_space(spec, check_setting, argument_fields())
    dependents = Dependents.build(dependent or {}, parameters, fixed, check_setting, conditions)
    required = [Expression.parse("require", text, argument_fields()) for text in require]
    return SearchSpace.build(parameters, FIXED | fixed, dependents, conditions, required)


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


def test_description_has_the_values_that_occur_and_the_condition() -> None:
    space = space_of(
        {
            "mm_hidden_dim": {"choice": [30, 64]},
            "mm_n_heads": {"choice": [2, 3, 7, 8]},
            "weight_decay": {"uniform": [0, 1], "when": "mm_hidden_dim >  40"},
        }
    )
    assert space.describe() == {
        "mm_hidden_dim": "one of 30, 64",
        "mm_n_heads": "one of 2, 3, 8",
        "weight_decay": "0 to 1 when mm_hidden_dim >  40",
    }
    assert space.rules == ("mm_hidden_dim must be divisible by mm_n_heads",)


def test_a_rule_that_excludes_nothing_is_not_named_but_what_is_asked_for_is() -> None:
    space = space_of({"mm_n_heads": {"choice": [2, 4]}}, require=["mm_n_heads <= 4", "mm_hidden_dim == 64"])
    assert space.rules == ("mm_n_heads <= 4", "mm_hidden_dim == 64")
    assert space.free == {"mm_n_heads": Choice((2, 4))}


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


NESTED = {
    "mm_n_points": {"choice": [2, 4], "when": "mm_reference_points != 'center'"},
    "mm_reference_points": {"choice": ["center", "learned"], "when": "mm_projector_type == 'deformable'"},
    "offset_lr_multiplier": {"loguniform": [0.01, 1.0], "when": "mm_projector_type == 'deformable'"},
    "mm_projector_type": {"choice": ["deformable", "swin_conv"]},
}


def test_an_argument_is_searched_only_where_its_condition_holds_also_that_of_what_it_depends_on() -> None:
    space = space_of(NESTED)
    found = {tuple(setting) for setting, _ in samples(space, 100)}
    assert found == {
        ("mm_projector_type",),
        ("mm_projector_type", "mm_reference_points", "offset_lr_multiplier"),
        ("mm_projector_type", "mm_reference_points", "mm_n_points", "offset_lr_multiplier"),
    }
    assert all("center" not in setting.values() for setting, _ in samples(space, 100) if "mm_n_points" in setting)
    assert space.conditional
    assert (space.size, space.continuous) == (1 + 1 + 2, ("offset_lr_multiplier",))
    with pytest.raises(SearchError, match="offset_lr_multiplier cannot be tried value by value; use choice, or int"):
        next(space.combinations())


def test_an_absent_argument_counts_with_its_fixed_value() -> None:
    """As a condition's and as a rule's: the trial is trained with it."""
    spec = {
        "mm_hidden_dim": {"choice": [32, 36]},
        "swin_type": {"choice": ["base", "large"]},
        "mm_n_heads": {"choice": [4, 8], "when": "swin_type == 'base'"},
        "mm_n_points": {"choice": [2, 4], "when": "mm_n_heads == 9"},
    }
    space = space_of(spec, mm_n_heads=9)
    found = {tuple(setting.items()) for setting in space.combinations()}
    base = {(("mm_hidden_dim", d), ("swin_type", "base"), ("mm_n_heads", h)) for d, h in ((32, 4), (32, 8), (36, 4))}
    large = {(("mm_hidden_dim", 36), ("swin_type", "large"), ("mm_n_points", p)) for p in (2, 4)}
    assert found == base | large


def test_what_follows_an_absent_argument_has_its_fixed_value() -> None:
    spec = {
        "mm_n_points": {"choice": [2, 4]},
        "swin_type": {"choice": ["base", "large"], "when": "mm_n_points == 4"},
    }
    followers = {"swin_type": {"mm_n_heads": {"base": 8, "large": 16}}}
    space = space_of(spec, followers, ["mm_n_heads * mm_n_points != 32"], mm_n_heads=4)
    assert [dict(each) for each in space.combinations()] == [
        {"mm_n_points": 2},
        {"mm_n_points": 4, "swin_type": "large"},
    ]


def test_conditions_on_what_is_fixed_are_decided_at_once() -> None:
    assert space_of(NESTED, mm_reference_points="learned").conditions.keys() == {
        "mm_n_points",
        "mm_reference_points",
        "offset_lr_multiplier",
    }
    without_parent = {name: spec for name, spec in NESTED.items() if name != "mm_projector_type"}
    space = space_of(without_parent, mm_projector_type="deformable")
    assert space.names == ("mm_reference_points", "mm_n_points", "offset_lr_multiplier")
    assert space.conditions.keys() == {"mm_n_points"}
    space = space_of(without_parent, mm_projector_type="swin_conv", mm_reference_points="center")
    assert (space.names, tuple(space.combinations()), space.size) == ((), ({},), 1)
    assert space.unsearched.keys() == without_parent.keys()


def test_a_condition_that_holds_in_all_combinations_is_none() -> None:
    spec = {"mm_n_heads": {"choice": [2, 4]}, "weight_decay": {"uniform": [0, 1], "when": "mm_n_heads >= 2"}}
    space = space_of(spec)
    assert (space.linked, space.conditions) == ((), {})
    assert set(space.free) == set(spec)


def test_int_stays_int_for_the_study_where_all_its_values_are_valid() -> None:
    space = space_of(
        {"mm_n_points": {"int": [1, 4]}, "mm_n_heads": {"choice": [2, 4], "when": "mm_n_points in [2, 4]"}}
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    space.suggest(trial)
    assert trial.distributions["mm_n_points"] == optuna.distributions.IntDistribution(1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_n_points": 4}, "mm_n_points = 4, but it is searched only when mm_reference_points != 'center'"),
        ({"mm_reference_points": "learned"}, "mm_n_points is missing; it is searched when mm_reference_points != 'cen"),
        ({"mm_projector_type": "swin_conv"}, "mm_reference_points = center, but it is searched only when mm_projector"),
        (
            {"mm_n_pointz": 4},
            "it has mm_projector_type, mm_reference_points, offset_lr_multiplier, mm_n_pointz, but se",
        ),
        ({"offset_lr_multiplier": 2.0}, "offset_lr_multiplier = 2.0 is not in the space"),
    ],
)
def test_refusal_says_what_is_too_much_and_what_is_missing(change: dict[str, Any], message: str) -> None:
    space = space_of(NESTED)
    inside = {"mm_projector_type": "deformable", "mm_reference_points": "center", "offset_lr_multiplier": 0.1}
    assert space.refusal(inside) is None
    assert message in str(space.refusal(inside | change))


def test_examples_hold_every_value_of_conditional_arguments_and_are_in_the_space() -> None:
    space = space_of(NESTED)
    seen = list(space.examples())
    assert all(space.refusal(setting) is None for setting in seen)
    assert {s["mm_n_points"] for s in seen if "mm_n_points" in s} == {2, 4}
    assert {0.01, 1.0} <= {s["offset_lr_multiplier"] for s in seen if "offset_lr_multiplier" in s}
    assert {s["mm_projector_type"] for s in seen} == {"deformable", "swin_conv"}


def test_examples_of_many_combinations_are_few() -> None:
    """Each is checked in full before the start."""
    space = space_of({"mm_hidden_dim": {"int": [1, 60]}, "mm_n_heads": {"int": [1, 60]}})
    assert len(list(space.examples())) < 130 < space.size


WORDS = ["center", "learned"]


def test_the_largest_settings_have_each_number_at_its_top_with_all_words() -> None:
    space = space_of(
        {
            "mm_hidden_dim": {"choice": [32, 64, 128]},
            "mm_n_points": {"choice": [2, 4, 8]},
            "mm_reference_points": {"choice": WORDS},
            "weight_decay": {"uniform": [0, 1], "when": "mm_hidden_dim > 32"},
        },
        require=["mm_hidden_dim * mm_n_points <= 256"],
    )
    found = [{n: v for part in parts for n, v in part.items()} for parts in product(*space.largest())]
    assert all(space.refusal(setting) is None for setting in found)
    tops = {(s["mm_hidden_dim"], s["mm_n_points"], s["mm_reference_points"]) for s in found}
    assert tops == set(product([128], [2], WORDS)) | set(product([64], [4], WORDS)) | set(product([32], [8], WORDS))


@pytest.mark.parametrize(
    ("spec", "require", "message"),
    [
        (
            {"swin_type": SWIN, "mm_n_points": {"choice": [2, 4], "when": "swin_type == 'small'"}},
            [],
            "space: mm_n_points is searched when swin_type == 'small', which holds in no trial; change it, or fix "
            "mm_n_points below arguments or by --set",
        ),
        (
            {
                "mm_n_points": {"choice": [2, 4], "when": "mm_n_heads > 2"},
                "mm_n_heads": {"choice": [2, 4], "when": "mm_n_points > 2"},
            },
            [],
            "space: the conditions of mm_n_heads, mm_n_points need each other; drop one",
        ),
        (
            {"mm_n_points": {"choice": [2, 4], "when": "mm_n_points > 2"}},
            [],
            "space: the conditions of mm_n_points need each other; drop one",
        ),
        (
            {
                "learning_rate": {"loguniform": [1e-4, 1e-2]},
                "mm_n_points": {"choice": [2], "when": "learning_rate < 1"},
            },
            [],
            "space: mm_n_points: when: learning_rate < 1: learning_rate has any value from 0.0001 to 0.01 on a log "
            "scale, but combinations are tried one by one; use choice, or int with a step",
        ),
        (
            {"learning_rate": {"loguniform": [1e-4, 1e-2]}},
            ["learning_rate < 1e-3"],
            "require: learning_rate < 1e-3: learning_rate has any value from 0.0001 to 0.01 on a log scale, but "
            "combinations are tried one by one; use choice, or int with a step",
        ),
        (
            {"mm_n_points": {"choice": [2, 4]}},
            ["mm_hidden_dim < 64"],
            "require: mm_hidden_dim < 64 does not hold, as mm_hidden_dim = 64 in all trials; change one of them",
        ),
        (
            {"mm_n_points": {"int": [1, 40]}},
            ["mm_n_points > 50"],
            "no combination is valid of mm_n_points: 1, 2, 3, 4, 5, 6, ..., 40; mm_n_points > 50",
        ),
        (
            {"warmup_steps": {"int": [0, 4]}},
            ["8 // warmup_steps > 2"],
            "require: 8 // warmup_steps > 2: '8 // warmup_steps' (column 1) divides by zero, with warmup_steps = 0; "
            "change one",
        ),
        (
            {"swin_type": SWIN, "mm_n_points": {"choice": [2, 4]}},
            ["mm_n_points > swin_type"],
            "require: mm_n_points > swin_type: 'swin_type' (column 15) is a word, but must be a number, with "
            "mm_n_points = 2, swin_type = base; change one",
        ),
        (
            {"mm_n_points": {"int": [1, 1000]}, "num_queries": {"int": [1, 1000]}},
            ["mm_n_points != num_queries"],
            "space: mm_n_points, num_queries have more than 100,000 combinations, which must be tried one by one "
            "(mm_n_points != num_queries); use fewer values, or int with a larger step",
        ),
        (
            {"mm_n_points": {"choice": [2], "when": 3}},
            [],
            "space: mm_n_points: when = 3 must be a condition on arguments, e.g. mm_n_points <= 8",
        ),
    ],
)
def test_a_condition_or_rule_that_cannot_be_used_is_refused(spec: Any, require: list[str], message: str) -> None:
    with pytest.raises(SearchError) as error:
        space_of(spec, require=require)
    assert str(error.value) == message


def test_as_many_combinations_as_are_allowed_are_found_in_seconds() -> None:
    start = time.process_time()
    space = space_of(
        {"mm_n_points": {"int": [1, 316]}, "num_queries": {"int": [1, 316]}}, require=["mm_n_points != num_queries"]
    )
    assert space.size == 316 * 315
    assert len({tuple(s.values()) for s, _ in samples(space, 50)}) > 40
    assert time.process_time() - start < 15


@pytest.mark.parametrize(
    ("spec", "excluded"),
    [
        ({"fp16": {"choice": [True, False]}, "bf16": {"choice": [True, False]}}, {(True, True)}),
        (
            {"tune_mm_mlp_adapter": {"choice": [True, False]}, "train_backbone": {"choice": [True, False]}},
            {(True, True)},
        ),
    ],
)
def test_what_training_refuses_together_is_not_proposed(spec: Any, excluded: set[Any]) -> None:
    space = space_of(spec)
    every = set(product([True, False], repeat=2))
    assert {tuple(s[name] for name in spec) for s in space.combinations()} == every - excluded
    for setting in space.combinations():
        check_settings(setting)


POOL: dict[str, list[Any]] = {
    "swin_type": ["base", "large"],
    "mm_hidden_dim": [12, 16, 18],
    "mm_n_heads": [2, 3, 8],
    "mm_n_points": [1, 2, 4],
    "train_backbone": [True, False],
    "num_queries": [3, 5],
}
FOLLOWS = {"base": 3, "large": 5}
"""The warm-up steps, after the tower."""
CONDITIONS = [
    *("swin_type == 'large'", "swin_type in ['base', 'tiny']", "warmup_steps > 3"),
    *("mm_hidden_dim < 18", "mm_hidden_dim % 4 == 0", "mm_n_heads != 3", "2 < mm_n_heads <= 8"),
    *("mm_n_points // 2 > 0", "not mm_n_points == 1", "train_backbone", "not train_backbone"),
    *("num_queries + mm_n_points < 8", "num_queries * 2 >= mm_hidden_dim - warmup_steps"),
]


def naive(spec: dict[str, Any], require: list[str], fixed: dict[str, Any]) -> set[frozenset[tuple[str, Any]]]:
    """Valid settings, in another way: all values of all arguments, Python's own eval, conditions from the first on."""
    known = {"true": True, "false": False, "none": None}
    found = set()
    for values in product(*(entry["choice"] for entry in spec.values())):
        setting: dict[str, Any] = {}
        complete = dict(fixed)
        for (name, entry), value in zip(spec.items(), values, strict=True):
            if eval(entry.get("when", "true"), known | complete):
                complete[name] = setting[name] = value
                if name == "swin_type":
                    complete["warmup_steps"] = FOLLOWS[value]
        good = complete["mm_hidden_dim"] % complete["mm_n_heads"] == 0
        if good and all(eval(each, known | complete) for each in require):
            found.add(frozenset(setting.items()))
    return found


class Draws:
    """Draws at random; a study's parameter must never change what it is drawn from."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.known: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert self.known.setdefault(name, choices) == choices
        return self.rng.choice(choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.suggest_categorical(name, range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        raise AssertionError("nothing is continuous")


def deciding(text: str) -> set[str]:
    """The arguments of the pool that decide whether a condition holds."""
    return {name for name in POOL if name in text} | ({"swin_type"} if "warmup_steps" in text else set())


def random_spec(rng: random.Random) -> dict[str, Any]:
    """A condition names what stands before it, or what is not searched."""
    names = rng.sample(list(POOL), rng.randint(2, len(POOL)))
    spec: dict[str, Any] = {}
    for place, name in enumerate(names):
        spec[name] = {"choice": rng.sample(POOL[name], rng.randint(1, len(POOL[name])))}
        possible = [text for text in CONDITIONS if not deciding(text) & set(names[place:])]
        if possible and rng.random() < 0.6:
            spec[name]["when"] = " and ".join(rng.sample(possible, min(len(possible), rng.randint(1, 2))))
    return spec


@pytest.mark.parametrize("seed", range(100))
def test_exactly_the_valid_settings_of_a_random_space_are_proposed(seed: int) -> None:
    rng = random.Random(seed)
    spec, require = random_spec(rng), rng.sample(CONDITIONS, rng.randint(0, 2))
    followers = {}
    if "swin_type" in spec:
        followers = {"swin_type": {"warmup_steps": {each: FOLLOWS[each] for each in spec["swin_type"]["choice"]}}}
    shuffled = dict(rng.sample(list(spec.items()), len(spec)))
    expected = naive(spec, require, FIXED)
    searched = {name for setting in expected for name, _ in setting}
    kept: set[str] = set()  # all but those whose condition what is fixed decides
    for name, entry in spec.items():
        when = entry.get("when", "true")
        if deciding(when) & kept or eval(when, {"true": True} | FIXED):
            kept.add(name)
    if not expected or kept != searched:
        with pytest.raises(SearchError, match=r"no combination is valid|holds in no trial|does not hold"):
            space_of(shuffled, followers, require)
        return

    space = space_of(shuffled, followers, require)
    found = [frozenset(setting.items()) for setting in space.combinations()]
    assert (len(found), set(found)) == (space.size, expected)
    draws = Draws(rng)
    proposed = set()
    for _ in range(60 * len(expected)):
        setting = space.suggest(draws)
        assert space.refusal(setting) is None
        assert space.applicable(FIXED | setting) == setting
        assert set(space.study_params(setting)) <= set(draws.known)
        proposed.add(frozenset(setting.items()))
    assert proposed == expected


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_tpe_learns_in_a_conditional_space_and_proposes_what_is_valid() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = space_of(NESTED)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=8, multivariate=True, group=space.conditional)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    points = []
    for _ in range(60):
        trial = study.ask()
        setting = space.suggest(trial)
        assert space.refusal(setting) is None
        points.append(float(setting.get("mm_n_points", 0)))
        study.tell(trial, points[-1])
    assert sum(points[-20:]) / 20 > 1.5 * sum(points[:8]) / 8
