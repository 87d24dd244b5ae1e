"""A search space: which training arguments vary, and over what.

Every value is a training argument's value, checked before anything runs. Combinations that rules exclude are never
proposed, and an argument is only in a setting where its condition holds, by construction: where one searched value
restricts another, the second is drawn from the list that is valid for the first. The sampler sees one parameter per
such list, because a study keeps one list of choices per name.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tune.errors import SearchError
from tune.space.combinations import find_combinations
from tune.space.dependents import Dependents
from tune.space.expressions import Expression
from tune.space.linked import Linked, Mark, Setting
from tune.space.parameters import Parameter, Real, Suggester, Value


class SearchSpace:
    """The searched arguments. Use ``build``, which finds what depends on what.

    Args:
        free: arguments that do not depend on others, nor others on them.
        linked: groups of those that do.
        conditions: under which arguments are searched, of those that are not in every trial, in words.
        unsearched: conditions of arguments that the search's file names, but that are in no trial.
        rules: what restricts combinations, in words.
    """

    def __init__(
        self,
        free: Mapping[str, Parameter],
        linked: Iterable[Linked],
        conditions: Mapping[str, str] | None = None,
        unsearched: Mapping[str, str] | None = None,
        rules: Iterable[str] = (),
    ) -> None:
        self.free = dict(free)
        self.linked = tuple(linked)
        self.conditions = dict(conditions or {})
        self.unsearched = dict(unsearched or {})
        self.rules = tuple(rules)
        alone = (Linked({name: parameter}, ((Mark.ANY,),)) for name, parameter in self.free.items())
        self._groups = (*self.linked, *alone)

    @classmethod
    def build(
        cls,
        parameters: Mapping[str, Parameter],
        fixed: Mapping[str, Any],
        dependents: Dependents,
        conditions: Mapping[str, Expression] | None = None,
        required: Sequence[Expression] = (),
    ) -> "SearchSpace":
        """Apply the rules between arguments.

        Args:
            parameters: the searched arguments.
            fixed: the values of all arguments where they are not searched.
            dependents: what follows searched arguments.
            conditions: under which some arguments are searched.
            required: what must hold of every trial besides the rules of the model and of training.

        Raises:
            SearchError: no valid combination is left, or a condition or rule cannot be used.
        """
        found = find_combinations(parameters, fixed, dependents, conditions or {}, required)
        return cls(found.free, found.linked, found.conditions, found.unsearched, found.rules)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What each searched argument may be, alone."""
        return {name: parameter for group in self._groups for name, parameter in group.parameters.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The searched arguments."""
        return tuple(self.parameters)

    @property
    def conditional(self) -> bool:
        """Whether the set of the study's parameters differs between trials."""
        return any(group.conditional for group in self.linked)

    @property
    def continuous(self) -> tuple[str, ...]:
        """The arguments that have any number of a range, not one of a list."""
        return tuple(name for name, parameter in self.parameters.items() if isinstance(parameter, Real))

    @property
    def size(self) -> int:
        """How many valid settings of the discrete arguments there are."""
        return math.prod(group.size for group in self._groups)

    def combinations(self) -> Iterator[Setting]:
        """All valid settings.

        Raises:
            SearchError: some argument is continuous.
        """
        if self.continuous:
            raise SearchError(
                f"space: {', '.join(self.continuous)} cannot be tried value by value; use choice, or int with a step"
            )
        for settings in product(*(tuple(group.combinations()) for group in self._groups)):
            yield _merged(settings)

    def suggest(self, trial: Suggester) -> Setting:
        """A valid setting, drawn from the trial: of the arguments that are searched with those drawn before."""

        def draw(name: str, study_name: str, parameter: Parameter) -> Value:
            return parameter.suggest(trial, study_name)

        return _merged(group.draw(draw) for group in self._groups)

    def study_params(self, setting: Mapping[str, Value]) -> dict[str, Value]:
        """A setting under the names by which the study knows its parameters."""
        params: dict[str, Value] = {}

        def draw(name: str, study_name: str, parameter: Parameter) -> Value:
            params[study_name] = setting[name]
            return setting[name]

        for group in self._groups:
            group.draw(draw)
        return params

    def applicable(self, values: Mapping[str, Value]) -> Setting:
        """The setting that values of all arguments make: without those that are not searched with the others.

        It may be outside the space: see ``refusal``.
        """
        return _merged(group.applicable(values) for group in self._groups)

    def refusal(self, setting: Mapping[str, Value]) -> str | None:
        """Why a setting is outside the space; None if it is inside."""
        parameters = self.parameters
        if not setting.keys() <= parameters.keys() or not parameters.keys() - self.conditions <= setting.keys():
            return f"it has {', '.join(setting)}, but searched are {', '.join(parameters)}"
        for name, value in setting.items():
            if value not in parameters[name]:
                return f"{name} = {value} is not in the space ({parameters[name]})"
        refusals = (group.refusal(setting, self.conditions, self.rules) for group in self._groups)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def examples(self) -> Iterator[Setting]:
        """Settings in which every listed value, and both ends of every range, occur at least once."""
        examples = [tuple(group.examples()) for group in self._groups]
        first = [of_group[0] for of_group in examples]
        yield _merged(first)
        for place, of_group in enumerate(examples):
            yield from (_merged((*first[:place], setting, *first[place + 1 :])) for setting in of_group[1:])

    def largest(self) -> list[list[Setting]]:
        """The parts of a setting, each with those choices of which one is the largest, whatever makes it large.

        A number is at its largest, or as large as it can be where another one is; each word, true and false is tried.
        Parts do not depend on each other.
        """
        return [list(group.largest()) for group in self._groups]

    def describe(self) -> dict[str, str]:
        """Every searched argument with its values and its condition, in words."""
        return {
            name: str(parameter) + (f" when {self.conditions[name]}" if name in self.conditions else "")
            for name, parameter in self.parameters.items()
        }


def _merged(settings: Iterable[Setting]) -> Setting:
    return {name: value for setting in settings for name, value in setting.items()}
