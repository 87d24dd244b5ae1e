"""Expressions for the built-in scenes, checked by a reader of them that knows only words and attributes."""

import copy
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psalm.data.expressions import CLEAR, expressions, refer_records
from psalm.data.images import read_segment_map
from psalm.data.refer_coco import ReferringData

GRAMMAR = re.compile(
    r"the (?:(?P<rank>leftmost|rightmost|topmost|bottommost|second|third) )?"
    r"(?P<words>(?:(?!above|below)\w+ )*?(?:circle|square|triangle))"
    r"(?: from the (?P<end>left|right|top|bottom)| (?P<relation>left of|right of|above|below) (?P<anchor>the .+))?"
)
LOOKS = [
    ("circle", "striped"),
    ("circle", "dotted"),
    ("square", "plain"),
    ("square", "checkered"),
    ("triangle", "plain"),
]


def meant(expression: str, objects: list[dict[str, Any]]) -> list[int]:
    """Which objects an expression means, by plain comparison of centres."""
    parsed = GRAMMAR.fullmatch(expression)
    assert parsed is not None, expression
    words = set(parsed["words"].split())
    named = [i for i, thing in enumerate(objects) if words <= {thing["shape"], thing["pattern"], thing["colour"]}]
    x, y = ([thing["centre"][axis] for thing in objects] for axis in (0, 1))
    if parsed["relation"]:
        (anchor,) = meant(parsed["anchor"], objects)
        holds = {
            "left of": lambda i: x[i] < x[anchor],
            "right of": lambda i: x[i] > x[anchor],
            "above": lambda i: y[i] < y[anchor],
            "below": lambda i: y[i] > y[anchor],
        }[parsed["relation"]]
        return [i for i in named if holds(i)]
    if parsed["rank"]:
        end = parsed["end"] or parsed["rank"].removesuffix("most")
        place = {"second": 1, "third": 2}.get(parsed["rank"], 0)
        along = {"left": x, "right": [-v for v in x], "top": y, "bottom": [-v for v in y]}[end]
        return [sorted(named, key=lambda i: along[i])[place]]
    return named


def kind(expression: str) -> str:
    parsed = GRAMMAR.fullmatch(expression)
    assert parsed is not None, expression
    return "relation" if parsed["relation"] else "rank" if parsed["rank"] else "attributes"


def thing(look: str, x: float, y: float) -> dict[str, Any]:
    colour, pattern, shape = look.split()
    return {"shape": shape, "pattern": pattern, "colour": colour, "centre": [x, y], "radius": 15.0}


def random_scene(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    scene = []
    for _ in range(rng.integers(1, 9)):
        shape, pattern = LOOKS[rng.integers(len(LOOKS))]
        colour = ("red", "blue", "white")[rng.integers(3)]
        scene.append(thing(f"{colour} {pattern} {shape}", *rng.uniform(10, 118, 2).round(2).tolist()))
    return scene


SCENES = [random_scene(seed) for seed in range(300)]


@cache
def every_expression() -> list[tuple[list[dict[str, Any]], int, tuple[str, ...]]]:
    return [(scene, i, expressions(scene, i, seed)) for seed, scene in enumerate(SCENES) for i in range(len(scene))]


def test_each_means_exactly_its_object():
    for scene, index, sents in every_expression():
        for sent in sents:
            assert meant(sent, scene) == [index], sent


def test_each_still_does_when_every_centre_is_misjudged():
    rng = np.random.default_rng(0)
    for scene, index, sents in every_expression():
        for _ in range(4):
            seen = copy.deepcopy(scene)
            for each in seen:
                each["centre"] = (np.array(each["centre"]) + rng.choice([-1, 1], 2) * (CLEAR / 2 - 0.01)).tolist()
            for sent in sents:
                assert meant(sent, seen) == [index], sent


def test_no_attribute_is_idle():
    """Without any of its adjectives, an expression by attributes would mean several objects."""
    for scene, _, sents in every_expression():
        for sent in (sent for sent in sents if kind(sent) == "attributes"):
            *adjectives, shape = sent.split()[1:]
            for idle in adjectives:
                shorter = " ".join(["the", *(word for word in adjectives if word != idle), shape])
                assert len(meant(shorter, scene)) > 1, sent


def test_kinds_differ_and_are_common():
    counts: Counter[str] = Counter()
    for _, _, sents in every_expression():
        kinds = [kind(sent) for sent in sents]
        assert len(set(kinds)) == len(kinds) <= 3
        counts.update(kinds or ["none"])
    objects = sum(map(len, SCENES))
    assert all(counts[each] > 0.4 * objects for each in ("attributes", "relation", "rank"))
    assert counts["none"] < 0.1 * objects


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        ([thing("red plain triangle", 30, 30)], ["the triangle"]),
        (
            [thing("red striped circle", 20, 50), thing("white striped circle", 100, 60)],
            ["the red circle", "the circle left of the white circle", "the leftmost circle"],
        ),
        (
            [thing("red striped circle", 20, 20), thing("red dotted circle", 20, 60)],
            ["the striped circle", "the circle above the dotted circle", "the topmost circle"],
        ),
        (
            [
                thing("red striped circle", 60, 90),
                thing("red dotted circle", 60, 50),
                thing("white striped circle", 60, 10),
            ],
            ["the red striped circle", "the circle below the dotted circle", "the bottommost circle"],
        ),
        (
            [thing("red plain square", 60, 50), thing("red plain square", 20, 50), thing("red plain square", 100, 50)],
            ["the second square from the left"],
        ),
        (
            [thing("red plain square", 60, 50), thing("blue plain triangle", 20, 50)],
            ["the square", "the square right of the triangle"],
        ),
    ],
)
def test_small_scenes(scene, expected):
    assert list(expressions(scene, 0)) == expected


def test_unclear_places_are_not_compared():
    near = [thing("red striped circle", 50, 50), thing("white dotted circle", 50 + CLEAR - 0.1, 50 + CLEAR - 0.1)]
    assert expressions(near, 0) == ("the red circle",)


def test_relation_holds_more_than_any_other():
    """An object that lies 12 pixels to the left and 60 above is above, not left."""
    scene = [thing("red striped circle", 50, 20), thing("blue plain triangle", 62, 80)]
    assert [expressions(scene, 0, variety)[1] for variety in range(4)] == ["the circle above the triangle"] * 4


def test_relation_that_is_needed_is_preferred():
    """No other circle is red, but another is striped: only there is the relation needed."""
    scene = [
        thing("red striped circle", 80, 50),
        thing("white striped circle", 20, 50),
        thing("white dotted circle", 100, 50),
        thing("blue plain square", 50, 50),
    ]
    relations = {expressions(scene, 0, variety)[1] for variety in range(4)}
    anchors = ("square", "white striped circle")
    assert relations == {f"the striped circle right of the {anchor}" for anchor in anchors}


def test_ranks_beyond_the_third_are_not_counted():
    row = [thing("red plain square", 15 * number, 50) for number in range(8)]
    assert [expressions(row, number) for number in (2, 3, 5)] == [
        ("the third square from the left",),
        (),
        ("the third square from the right",),
    ]


def test_equally_good_expressions_take_turns():
    scene = [thing("red striped circle", 20, 50), thing("white dotted circle", 100, 90)]
    assert {expressions(scene, 0, variety)[0] for variety in range(4)} == {"the red circle", "the striped circle"}
    assert {expressions(scene, 0, variety)[2] for variety in range(4)} == {"the leftmost circle", "the topmost circle"}


def annotation(annotation_id: int) -> dict[str, Any]:
    return {"id": annotation_id, "image_id": 4, "segmentation": {"size": [2, 2], "counts": [4]}}


def test_record():
    scene = [thing("red striped circle", 20, 50), thing("white striped circle", 100, 60)]
    image = {"id": 4, "file_name": "4.jpg", "height": 2, "width": 2}
    first, second = refer_records(image, scene, [annotation(400), annotation(401)])
    assert first == {
        "image": "4.jpg",
        "image_info": image,
        "instruction": [
            {"sent": sent, "raw": sent, "tokens": tokens, "sent_id": 4000 + number}
            for number, (sent, tokens) in enumerate(
                [
                    ("the red circle", ["the", "red", "circle"]),
                    ("the circle left of the white circle", ["the", "circle", "left", "of", "the", "white", "circle"]),
                    ("the leftmost circle", ["the", "leftmost", "circle"]),
                ]
            )
        ],
        "anns": [annotation(400)],
        "new_img_id": 400,
    }
    assert (second["new_img_id"], second["anns"]) == (401, [annotation(401)])


def test_objects_that_nothing_singles_out_have_no_record():
    twins = [thing("red striped circle", 50, 50), thing("red striped circle", 55, 52)]
    scene = [*twins, thing("blue plain triangle", 60, 48)]
    image = {"id": 4, "file_name": "4.jpg", "height": 2, "width": 2}
    (only,) = refer_records(image, scene, [annotation(400), annotation(401), annotation(402)])
    assert (only["new_img_id"], [each["sent"] for each in only["instruction"]]) == (402, ["the triangle"])


def test_annotations_must_be_those_of_the_objects():
    with pytest.raises(ValueError, match="shorter"):
        refer_records({"id": 4, "file_name": "4.jpg"}, SCENES[0], [])


def builtin_records(root: Path, split: str) -> list[dict[str, Any]]:
    """As the built-in data set writes them."""
    folder = root / "annotations"
    instances = json.loads((folder / f"instances_{split}2017.json").read_text())
    scenes = json.loads((folder / f"attributes_{split}2017.json").read_text())["scenes"]
    records = []
    for image, scene in zip(instances["images"], scenes, strict=True):
        own = [each for each in instances["annotations"] if each["image_id"] == image["id"]]
        records += refer_records(image, scene["objects"], own)
    return records


def test_builtin_scenes_are_referring_data(builtin_root, tmp_path):
    """The reader's masks are the panoptic segments of the objects that the expressions mean."""
    path = tmp_path / "refer_train2017_psalm.json"
    path.write_text(json.dumps(builtin_records(builtin_root, "train")))
    data = ReferringData(path, "train", [builtin_root / "train2017"])
    scenes = json.loads((builtin_root / "annotations" / "attributes_train2017.json").read_text())["scenes"]
    objects_of = {scene["image_id"]: scene["objects"] for scene in scenes}
    maps = builtin_root / "annotations" / "panoptic_train2017"
    assert len(data) > 0.8 * sum(map(len, objects_of.values()))
    assert not data.generalised
    for index in range(len(data)):
        record = data.record(index)
        objects = objects_of[record.image_id]
        segment_map = read_segment_map(maps / record.file_name.replace("jpg", "png"))
        for expression in record.expressions:
            (number,) = meant(expression, objects)
            expected = segment_map == objects[number]["segment_id"]
            assert np.array_equal(record.masks, expected[None])


def test_the_same_whenever_they_are_made(builtin_root):
    assert builtin_records(builtin_root, "val") == builtin_records(builtin_root, "val")
    scene = SCENES[1]
    before = copy.deepcopy(scene)
    assert expressions(scene, 0) == expressions(before, 0)
    assert scene == before
