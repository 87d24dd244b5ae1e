"""Arguments that follow a searched one: every value of the leader has its own, and nothing else does."""

from typing import Any

import pytest

from psalm.train.arguments import check_setting
from psalm.train.fields import SettingError
from tune.space.dependents import Dependents
from tune.space.parameters import parse_parameter

SPACE = {
    "swin_type": {"choice": ["base", "large"]},
    "mm_n_heads": {"choice": [4, 8]},
    "train_backbone": {"choice": [True, False]},
    "warmup_ratio": {"choice": [0, 0.1]},
    "learning_rate": {"loguniform": [1e-6, 1e-4]},
}
TOWERS = {"base": "/w/base.pkl", "large": "/w/large.pkl"}


def build(content: Any, **arguments: Any) -> Dependents:
    parameters = {name: parse_parameter(name, spec, check_setting) for name, spec in SPACE.items()}
    return Dependents.build(content, parameters, arguments, check_setting)


@pytest.fixture
def dependents() -> Dependents:
    return build(
        {
            "swin_type": {"vision_tower": TOWERS, "per_device_train_batch_size": {"base": 4, "large": 2}},
            "train_backbone": {"weight_decay": {True: 0.1, False: 0}},
        }
    )


def test_followers_have_the_values_beside_their_leaders(dependents: Dependents) -> None:
    setting = {"swin_type": "large", "train_backbone": False, "learning_rate": 1e-5}
    assert dependents.of(setting) == {
        "vision_tower": "/w/large.pkl",
        "per_device_train_batch_size": 2,
        "weight_decay": 0.0,
    }
    assert dependents.of({"train_backbone": True}) == {"weight_decay": 0.1}


def test_a_follower_that_is_named_itself_keeps_its_value(dependents: Dependents) -> None:
    setting = {"swin_type": "tiny", "vision_tower": "/w/tiny.pkl", "per_device_train_batch_size": 8}
    assert dependents.of(setting) == {}


def test_all_arguments_of_a_trial(dependents: Dependents) -> None:
    complete = dependents.complete({"max_steps": 9, "weight_decay": 0.5}, {"swin_type": "base", "train_backbone": True})
    assert complete == {
        "max_steps": 9,
        "swin_type": "base",
        "train_backbone": True,
        "vision_tower": "/w/base.pkl",
        "per_device_train_batch_size": 4,
        "weight_decay": 0.1,
    }


@pytest.mark.parametrize(
    ("content", "setting", "expected"),
    [
        ({"mm_n_heads": {"mm_n_points": {4: 8, 8: 4}}}, {"mm_n_heads": 8}, {"mm_n_points": 4}),
        ({"mm_n_heads": {"mm_n_points": {"4": "8", "8": "4"}}}, {"mm_n_heads": 8}, {"mm_n_points": 4}),
        ({"warmup_ratio": {"seed": {0: 3, 0.1: 4}}}, {"warmup_ratio": 0.0}, {"seed": 3}),
        ({"train_backbone": {"seed": {"true": 3, False: 4}}}, {"train_backbone": True}, {"seed": 3}),
        ({"swin_type": {"image_folder": {"base": None, "large": "/i"}}}, {"swin_type": "base"}, {"image_folder": None}),
    ],
)
def test_values_and_keys_are_read_as_their_arguments_are(content: Any, setting: Any, expected: Any) -> None:
    assert build(content).of(setting) == expected


@pytest.mark.parametrize(
    ("fixed", "left"),
    [
        (["swin_type"], {"weight_decay": "train_backbone"}),
        (["vision_tower", "weight_decay"], {"per_device_train_batch_size": "swin_type"}),
        (["learning_rate"], None),
    ],
)
def test_what_is_fixed_follows_nothing(dependents: Dependents, fixed: list[str], left: dict[str, str] | None) -> None:
    assert dependents.without(fixed).leaders == (dependents.leaders if left is None else left)
    assert all(dependents.without(fixed).tables.values()), "no leader without followers"


def test_in_words_and_as_a_record(dependents: Dependents) -> None:
    assert (
        dependents.describe()["vision_tower"] == "/w/base.pkl for swin_type = base; /w/large.pkl for swin_type = large"
    )
    assert dependents.as_record()["swin_type"]["vision_tower"] == TOWERS
    assert dependents.as_record()["train_backbone"] == {"weight_decay": {"True": 0.1, "False": 0.0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"swin_typ": {"vision_tower": TOWERS}},
            "dependent: swin_typ is not searched, so nothing can follow it; searched are swin_type, mm_n_heads, "
            "train_backbone, warmup_ratio, learning_rate; did you mean 'swin_type'?",
        ),
        (
            {"learning_rate": {"seed": {1e-6: 1}}},
            "dependent: learning_rate must be a choice to be followed, but is 1e-06 to 0.0001 on a log scale; "
            "use choice",
        ),
        ({"swin_type": "base"}, "dependent: swin_type = 'base' must hold arguments with their values"),
        ({"swin_type": {}}, "dependent: swin_type = {} must hold arguments with their values"),
        (
            {"swin_type": {"vision_tower": "/w/base.pkl"}},
            "dependent: swin_type: vision_tower = '/w/base.pkl' must hold a value for each swin_type: base, large",
        ),
        (
            {"swin_type": {"vision_tower": {"base": "/w/base.pkl"}}},
            "dependent: vision_tower has no value for swin_type = large; add it",
        ),
        (
            {"mm_n_heads": {"seed": {4: 1, 8: 2, 16: 3}}},
            "dependent: seed has a value for mm_n_heads = 16, which is not searched; searched are 4, 8; drop it",
        ),
        (
            {"mm_n_heads": {"seed": {4: 1, "4": 2, 8: 3}}},
            "dependent: seed has two values for mm_n_heads = 4; drop one",
        ),
        (
            {"swin_type": {"vision_tower": {"base": "/w/base.pkl", "huge": "/w/huge.pkl"}}},
            "swin_type must be one of tiny, small, base, large, but got 'huge'; choose one of them",
        ),
        (
            {"swin_type": {"vision_towr": TOWERS}},
            "vision_towr is not an argument (its value is '/w/base.pkl'); did you mean 'vision_tower'?",
        ),
        (
            {"swin_type": {"seed": {"base": "many", "large": 1}}},
            "seed must be a whole number, but got 'many'; change its type",
        ),
        (
            {"swin_type": {"mm_n_heads": {"base": 4, "large": 8}}},
            "dependent: mm_n_heads follows swin_type, but it has values in space too; drop one",
        ),
        (
            {"swin_type": {"swin_type": {"base": "large", "large": "base"}}},
            "dependent: swin_type follows swin_type, but it has values in space too; drop one",
        ),
        (
            {"swin_type": {"max_steps": {"base": 4, "large": 8}}},
            "dependent: max_steps follows swin_type, but it has values in arguments too; drop one",
        ),
        (
            {"swin_type": {"seed": {"base": 4, "large": 8}}, "mm_n_heads": {"seed": {4: 1, 8: 2}}},
            "dependent: seed follows mm_n_heads, but it has values in swin_type too; drop one",
        ),
    ],
)
def test_a_mistake_is_refused(content: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        build(content, max_steps=9)
    assert str(error.value) == message


def test_a_leader_fixed_to_another_value_is_refused(dependents: Dependents) -> None:
    with pytest.raises(SettingError) as error:
        dependents.of({"swin_type": "small", "per_device_train_batch_size": 1})
    assert str(error.value) == (
        "dependent: vision_tower has no value for swin_type = small, only for base, large; "
        "add it to the file, or --set vision_tower too"
    )
