"""Are two runs the same run? Bit for bit where their arithmetic is the same, else within stated tolerances.

On one kind of processor the same settings give the same bits. Elsewhere sums are taken in another order, and a
difference in the last bit grows from step to step until the curves have nothing in common but where they begin and
where they lead. So two things are held to a tolerance there: the total loss at the first logged step, and the main
metrics at the last evaluation. Other values are shown, and their steps must be the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.table import Table

Points = Sequence[tuple[int, float]]
"""A metric's (step, value), in order of steps."""
_Pair = tuple[tuple[int, float], tuple[int, float]]

MACHINE = "system/"
"""Metrics below this name describe the machine, not the run: they are never the same twice."""
LOSS = "loss"
"""The total loss; in a mixture there is one below the name of each task."""

ARITHMETIC = (
    "device",
    "processor",
    "omp_num_threads",
    "torch_threads",
    *(f"version.{package}" for package in ("accelerate", "deepspeed", "numpy", "pillow", "scipy", "torch")),
    "version.transformers",
)
"""Tags of a run on which the order of its sums, and so its last bits, depend."""
INPUTS = ("data_fingerprint", "weights_fingerprint")
"""What tags begin with that tell of a run's data and weights."""

RTOL, RTOL_HALF = 0.01, 0.05
"""Of the first logged loss in float32 and in bf16 or fp16. Measured on an H200 with the built-in panoptic task and one
seed, as the share by which the mean losses of two runs differed: over 10 steps 1e-6 in float32 and 0.004 in bf16, over
50 steps 0.002 and 0.013; at the first step 0.005 between float32 and bf16."""
ATOL = 4.0
"""Of main metrics, in points (percent). Eight runs of one setting and seed on an H200 (float32, bf16 and fp16, with and
without ZeRO-2) had a standard deviation of 1.07 at a PQ of 77: two of them are less than 3.6 apart in 95 of 100
cases."""


GIVEN = "as given"


@dataclass(frozen=True)
class Tolerance:
    """What runs may differ by whose last bits cannot be the same, and where each figure comes from."""

    rtol: float
    """Of the total loss at the first logged step, relative to the recorded one."""
    atol: float
    """Of the main metrics at the last evaluation, in their own unit: points of percent."""
    rtol_source: str
    atol_source: str

    def replaced(self, rtol: float | None, atol: float | None) -> "Tolerance":
        """The same with figures that somebody gave."""
        return Tolerance(
            self.rtol if rtol is None else rtol,
            self.atol if atol is None else atol,
            self.rtol_source if rtol is None else GIVEN,
            self.atol_source if atol is None else GIVEN,
        )

    def __str__(self) -> str:
        """Both, in a sentence."""
        return (
            f"the first logged loss within {self.rtol:.2%} ({self.rtol_source}), "
            f"main metrics at the last evaluation within {self.atol:.2f} points ({self.atol_source})"
        )


def default_tolerance(settings: Mapping[str, Any]) -> Tolerance:
    """What is allowed where nothing is known of a run's spread over seeds."""
    half = settings["bf16"] or settings["fp16"]
    return Tolerance(
        RTOL_HALF if half else RTOL,
        ATOL,
        f"the default in {'half precision' if half else 'float32'}",
        "the default; the spread over seeds is not known",
    )


class Agreement(StrEnum):
    """How one metric of two runs compares."""

    EQUAL = "equal"
    WITHIN = "within tolerance"
    SHOWN = "not judged"
    """Neither a loss at its beginning nor a main metric at its end; the steps are the same."""
    DIFFERENT = "differs"


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs; ``difference`` says where and how they differ, None if nowhere."""

    name: str
    points: int
    agreement: Agreement
    difference: str | None = None


def compare(
    recorded: Mapping[str, Points],
    repeated: Mapping[str, Points],
    stopped_at: int | None = None,
    tolerance: Tolerance | None = None,
    main_metrics: Sequence[str] = (),
) -> list[Comparison]:
    """Every metric of either run outside ``system/``.

    Args:
        recorded: the first run's metrics by name.
        repeated: the second run's.
        stopped_at: where the first run was cut off from outside: of that step it may lack what was to come.
        tolerance: what is allowed; None: all steps and all bits of all values must be equal.
        main_metrics: those that the tolerance holds for at the last evaluation.
    """
    rows = []
    for name in sorted(name for name in {*recorded, *repeated} if not name.startswith(MACHINE)):
        first, second = recorded.get(name, ()), repeated.get(name, ())
        if stopped_at is not None:
            known = {step for step, _ in first}
            second = [(step, value) for step, value in second if step < stopped_at or step in known]
        difference = _first_difference(first, second)
        if difference is None:
            rows.append(Comparison(name, len(first), Agreement.EQUAL))
        elif tolerance is None or [step for step, _ in first] != [step for step, _ in second]:
            rows.append(Comparison(name, len(first), Agreement.DIFFERENT, difference))
        else:
            rows.append(_judge(name, first, second, tolerance, main_metrics))
    return rows


def _first_difference(recorded: Points, repeated: Points) -> str | None:
    for step in sorted({step for step, _ in (*recorded, *repeated)}):
        first = [value for at, value in recorded if at == step]
        second = [value for at, value in repeated if at == step]
        if [value.hex() for value in first] != [value.hex() for value in second]:
            return f"step {step}: recorded {_shown(first)}, now {_shown(second)}"
    return None


def _judge(
    name: str, recorded: Points, repeated: Points, tolerance: Tolerance, main_metrics: Sequence[str]
) -> Comparison:
    """A metric whose steps are the same, but not all of its values."""
    pairs = list(zip(recorded, repeated, strict=True))
    if name in main_metrics:
        at, allowed = pairs[-1], tolerance.atol
    elif name.rpartition("/")[2] == LOSS:
        at, allowed = pairs[0], tolerance.rtol * abs(recorded[0][1])
    else:
        widest = max(pairs, key=_distance)
        return Comparison(name, len(pairs), Agreement.SHOWN, _apart(widest))
    (_, first), (_, second) = at
    within = first.hex() == second.hex() or _distance(at) <= allowed  # two NaNs are equal
    return Comparison(name, len(pairs), Agreement.WITHIN if within else Agreement.DIFFERENT, _apart(at))


def _distance(pair: _Pair) -> float:
    return abs(pair[1][1] - pair[0][1])


def _apart(pair: _Pair) -> str:
    (step, first), (_, second) = pair
    return f"step {step}: recorded {first:.6g}, now {second:.6g}, {_distance(pair):.2g} apart"


def _shown(values: Sequence[float]) -> str:
    return " and ".join(map(repr, values)) or "nothing"


def verdict(comparisons: Sequence[Comparison]) -> str:
    """``identical``, ``within tolerance`` or ``different``."""
    found = {row.agreement for row in comparisons}
    if Agreement.DIFFERENT in found:
        return "different"
    return "identical" if found <= {Agreement.EQUAL} else "within tolerance"


def summary(comparisons: Sequence[Comparison]) -> str:
    """The verdict's reason in words."""
    rows, points = len(comparisons), sum(row.points for row in comparisons)
    counts = {kind: sum(row.agreement == kind for row in comparisons) for kind in Agreement}
    if counts[Agreement.EQUAL] == rows:
        return f"{rows} metrics, {points} values, equal bit for bit"
    if counts[Agreement.DIFFERENT]:
        return f"{counts[Agreement.DIFFERENT]} of {rows} metrics differ"
    return (
        f"of {rows} metrics {counts[Agreement.EQUAL]} are equal bit for bit, {counts[Agreement.WITHIN]} within the "
        f"tolerance, {counts[Agreement.SHOWN]} not judged"
    )


def other_arithmetic(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Why the bits of two runs cannot be expected to be equal; empty where they can.

    Args:
        recorded: the first run's tags.
        present: the second's; what they do not have is not looked at.
    """
    reasons = []
    for name in ARITHMETIC:
        then, now = recorded.get(name), present.get(name)
        if now is not None and then is None:
            reasons.append(f"the {_words(name)} was not recorded, here it is {now}")
        elif now is not None and str(then) != str(now):
            reasons.append(f"{_words(name)}: recorded {then}, here {now}")
    if recorded.get("device") == present.get("device") not in (None, "cpu"):
        reasons.append(f"a GPU ({present['device']}) adds in no fixed order")
    return reasons


def _words(name: str) -> str:
    return name.replace("_", " ")


def as_table(comparisons: Sequence[Comparison]) -> Table:
    """One line per metric."""
    colours = {Agreement.EQUAL: "green", Agreement.WITHIN: "green", Agreement.DIFFERENT: "red"}
    table = Table("metric", "points", "verdict", box=None, pad_edge=False)
    for row in comparisons:
        colour = colours.get(row.agreement, "default")
        where = "" if row.difference is None else f" at {row.difference}"
        table.add_row(row.name, str(row.points), f"[{colour}]{row.agreement}[/]{where}")
    return table
