"""Expressions for the objects of the built-in scenes, each true of exactly one object of its picture.

Three kinds, at most one of each per object, with as few attributes as single it out:

- attributes: "the triangle", "the red circle", "the striped circle", "the red striped circle";
- a relation to an object that attributes single out: "the circle left of the red square";
- its rank among like objects: "the leftmost circle", "the second circle from the left", "the bottommost square".

Places are compared by centres, and only where the comparison is clear at first sight. Nothing is drawn at random: an
object's expressions depend on its scene and its annotation's id only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

CLEAR = 10.0
"""Pixels: two centres closer than this along an axis are not compared along it (an object's radius is 13 to 21)."""

PHRASES = (("shape",), ("colour", "shape"), ("pattern", "shape"), ("colour", "pattern", "shape"))
"""Attributes that an object may be called by, in the order of the words."""

RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Words -> (axis of ``centre``, sign of the way from the anchor to the object)."""

ENDS = ((0, "left", 1), (0, "right", -1), (1, "top", 1), (1, "bottom", -1))
"""(axis of ``centre``, end, whether counting from it goes along the axis or against it)."""
RANKS = ("{end}most {phrase}", "second {phrase} from the {end}", "third {phrase} from the {end}")

Candidate = tuple[tuple[bool, int], str]
"""What ranks an expression (lower is better), and the expression."""


def refer_records(
    image: dict[str, Any], objects: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """PSALM's referring records of a scene, one per object; an object that no expression singles out has none.

    Args:
        image: the COCO image record.
        objects: shape, pattern, colour and centre of every object.
        annotations: their COCO annotations, in the same order.
    """
    records = []
    for index, (_, annotation) in enumerate(zip(objects, annotations, strict=True)):
        sents = expressions(objects, index, variety=annotation["id"])
        if sents:
            records.append(
                {
                    "image": image["file_name"],
                    "image_info": image,
                    "instruction": [
                        {"sent": sent, "raw": sent, "tokens": sent.split(), "sent_id": 10 * annotation["id"] + number}
                        for number, sent in enumerate(sents)
                    ],
                    "anns": [annotation],
                    "new_img_id": annotation["id"],
                }
            )
    return records


def expressions(objects: Sequence[dict[str, Any]], index: int, variety: int = 0) -> tuple[str, ...]:
    """Up to three expressions, one of each kind, that mean the object at ``index`` and no other one of its scene.

    Args:
        objects: shape, pattern, colour and centre of every object.
        index: the object that is meant.
        variety: chooses among expressions that are equally good.
    """
    kinds = (_by_attributes(objects, index), _by_relation(objects, index), _by_rank(objects, index))
    return tuple(f"the {_choose(candidates, variety)}" for candidates in map(list, kinds) if candidates)


def _choose(candidates: list[Candidate], variety: int) -> str:
    best = min(rank for rank, _ in candidates)
    equal = [text for rank, text in candidates if rank == best]
    return equal[variety % len(equal)]


def _by_attributes(objects: Sequence[dict[str, Any]], index: int) -> Iterator[Candidate]:
    """Attributes that no other object shares."""
    for attributes in PHRASES:
        if not _others_called(objects, index, attributes):
            yield (False, len(attributes)), _phrase(objects[index], attributes)


def _by_relation(objects: Sequence[dict[str, Any]], index: int) -> Iterator[Candidate]:
    """A phrase and a relation to an anchor; better where the phrase alone would not do."""
    for attributes in PHRASES:
        others = _others_called(objects, index, attributes)
        phrase = _phrase(objects[index], attributes)
        for anchor, thing in enumerate(objects):
            anchor_phrases = list(_by_attributes(objects, anchor))
            rivals = [objects[other] for other in others if other != anchor]
            for words, (axis, sign) in RELATIONS.items():
                elsewhere = all(_offset(rival, thing, axis, -sign) >= CLEAR for rival in rivals)
                if anchor_phrases and elsewhere and _lies(objects[index], thing, axis, sign):
                    anchor_phrase = _choose(anchor_phrases, variety=index)
                    yield (not others, len(attributes)), f"{phrase} {words} the {anchor_phrase}"


def _by_rank(objects: Sequence[dict[str, Any]], index: int) -> Iterator[Candidate]:
    """The rank among the objects that a phrase means, counted from the nearer end of a row or column."""
    for attributes in PHRASES:
        others = [objects[other] for other in _others_called(objects, index, attributes)]
        for axis, end, sign in ENDS:
            offsets = [_offset(objects[index], other, axis, sign) for other in others]
            before = sum(offset > 0 for offset in offsets)
            nearer_end = 2 * before <= len(others) and before < len(RANKS)
            if others and nearer_end and min(map(abs, offsets)) >= CLEAR:
                text = RANKS[before].format(end=end, phrase=_phrase(objects[index], attributes))
                yield (False, len(attributes)), text


def _others_called(objects: Sequence[dict[str, Any]], index: int, attributes: tuple[str, ...]) -> list[int]:
    """The other objects with these attributes of the object at ``index``."""
    return [
        other
        for other, thing in enumerate(objects)
        if other != index and all(thing[attribute] == objects[index][attribute] for attribute in attributes)
    ]


def _phrase(thing: dict[str, Any], attributes: tuple[str, ...]) -> str:
    return " ".join(thing[attribute] for attribute in attributes)


def _offset(thing: dict[str, Any], anchor: dict[str, Any], axis: int, sign: int) -> float:
    """Pixels from the anchor's centre to the object's along an axis, or against it."""
    return sign * (thing["centre"][axis] - anchor["centre"][axis])


def _lies(thing: dict[str, Any], anchor: dict[str, Any], axis: int, sign: int) -> bool:
    """Whether an object lies that way of the anchor: clearly, and more so than to either side."""
    along, across = _offset(thing, anchor, axis, sign), _offset(thing, anchor, 1 - axis, 1)
    return along >= CLEAR and along >= abs(across)
