"""The corners of a space: its smallest and its largest settings, how large their models are, what memory they take."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from psalm.data.collator import Collator
from psalm.data.errors import DataError
from psalm.data.prompts import PromptBuilder
from psalm.doctor.files import deepspeed_config, zero_stage
from psalm.doctor.memory import check_offload
from psalm.model.activations import StepSizes, activations_of
from psalm.model.freezing import set_trainable
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import load_tokenizer, resolve_language_model
from psalm.model.memory import MemoryNeed, Sharding, memory_need
from psalm.train.arguments import with_defaults
from psalm.train.fingerprints import count_parameters
from psalm.train.inputs import shapes_of
from psalm.train.task_data import load_task
from psalm.train.tasks import tasks_of
from psalm.train.train import task_examples
from tune.config import SearchConfig
from tune.errors import SearchError
from tune.space.parameters import Value
from tune.space.space import SearchSpace
from tune.trials.ladder import CHECKPOINTING, LESS_IF_TRUE, MICRO_BATCH, climb, height
from tune.trials.room import FREEZING

Setting = dict[str, Value]


@dataclass(frozen=True)
class DeviceMemory:
    """What each process of a trial has.

    Args:
        available: bytes.
        overhead: bytes that it takes besides the training.
        words: where that is.
    """

    available: int
    overhead: int
    words: str


@dataclass(frozen=True)
class Corner:
    """A setting of the searched arguments, and what its training takes of each device.

    Args:
        params: the setting.
        parameters: of its model, frozen ones included.
        need: bytes as configured, by estimate; None where DeepSpeed moves state away from the device.
        rung: of the memory ladder at which it fits; None if it does at none.
        need_at_rung: bytes there.
        changes: arguments that the ladder changes up to there.
    """

    params: Mapping[str, Value]
    parameters: int
    need: int | None
    rung: int | None
    need_at_rung: int | None
    changes: Mapping[str, Any]


class _Extreme:
    """Draws the smallest or the largest of all numbers; of words the one that is given, else the first.

    A range of fractions gives its middle: learning rates, weights and shares change neither memory nor time, and those
    at their ends may not train.
    """

    def __init__(self, pick: Callable[[Any], Any], words: Mapping[str, str]) -> None:
        self.pick = pick
        self.words = words
        self.choices: dict[str, Sequence[str]] = {}
        """Of the words that were asked for."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if any(isinstance(choice, str) for choice in choices):
            self.choices[name] = choices
            return self.words.get(name, choices[0])
        return self._opposite(choices) if name in LESS_IF_TRUE else self.pick(choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self.pick((low, high)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return math.sqrt(low * high) if log else (low + high) / 2

    def _opposite(self, choices: Any) -> Any:
        return (min if self.pick is max else max)(choices)


def corners(space: SearchSpace, baselines: Sequence[Mapping[str, Value]] = ()) -> list[Setting]:
    """The first baseline, the smallest setting, and the largest with each of the searched words; each once.

    They are drawn as proposals are, and so are valid.
    """
    largest = _Extreme(max, {})
    found = [*(dict(setting) for setting in baselines[:1]), space.suggest(_Extreme(min, {})), space.suggest(largest)]
    for name, choices in largest.choices.items():
        found += [space.suggest(_Extreme(max, {name: word})) for word in choices[1:]]
    return [setting for number, setting in enumerate(found) if setting not in found[:number]]


def examine(config: SearchConfig, setting: Mapping[str, Value], memory: DeviceMemory | None) -> Corner:
    """How large a corner's model is, and how it fits; nothing of that size is allocated.

    Args:
        config: the search.
        setting: the corner.
        memory: of each of a trial's processes; None: nothing is known of it, and the corner fits.

    Raises:
        SearchError: its data cannot be read.
    """
    available, overhead = (sys.maxsize, 0) if memory is None else (memory.available, memory.overhead)
    settings = with_defaults(config.dependents.complete(config.arguments, setting))
    model = shapes_of(settings)
    sizes = step_sizes(settings, model)
    activations = cache(lambda checkpointing: _activations(settings, sizes, checkpointing))

    def need(changes: Mapping[str, Any]) -> int:
        """At a rung: activations grow with the number of images."""
        now = {**settings, **changes}
        taken = activations(bool(now[CHECKPOINTING])) * now[MICRO_BATCH] // settings[MICRO_BATCH]
        return step_need(settings, taken, config.resources.workers_per_trial).total + overhead

    parameters = count_parameters(model)
    if settings["deepspeed"] is not None and check_offload(deepspeed_config(settings).get("zero_optimization", {})):
        return Corner(setting, parameters, None, 0, None, {})
    for rung in range(height(settings) + 1):
        changes = climb(settings, rung)
        if need(changes) <= available:
            return Corner(setting, parameters, need({}), rung, need(changes), changes)
    return Corner(setting, parameters, need({}), None, None, {})


def step_need(settings: Mapping[str, Any], activations: int, devices: int) -> MemoryNeed:
    """What a step takes of each device, given what one micro-batch takes for a while.

    Args:
        settings: every training argument.
        activations: bytes.
        devices: over which DeepSpeed divides.
    """
    model = _trained_model(settings)
    trained = count_parameters(model, trainable=True)
    sharding = None
    if settings["deepspeed"] is not None:
        sharding = Sharding(zero_stage(deepspeed_config(settings)), devices)
    frozen = count_parameters(model) - trained
    return memory_need(trained, frozen, activations, half=settings["bf16"] or settings["fp16"], sharding=sharding)


def step_sizes(settings: Mapping[str, Any], model: PsalmForSegmentation) -> StepSizes:
    """Those of the first samples of a trial's tasks as one micro-batch, of each size the largest.

    Args:
        settings: every training argument.
        model: of the trial; its shapes are enough.

    Raises:
        SearchError: a sample cannot be read.
    """
    folder = resolve_language_model(settings["model_name_or_path"])
    tokenizer = load_tokenizer(folder, model.config.text_config)
    prompts, collate = PromptBuilder(tokenizer), Collator(tokenizer.pad_token_id)
    settings = {**settings, "image_size": settings["image_size"] or model.config.image_size}
    images = settings[MICRO_BATCH]
    of_tasks = []
    for task in tasks_of(settings):
        try:
            examples = task_examples(settings, load_task(settings, task).train, prompts)
            few = min(images, len(examples))
            of_tasks.append(StepSizes.of(collate([examples.example(index, random_key=0) for index in range(few)])))
        except DataError as error:
            raise SearchError(f"{task} data: {error}") from error
    largest = {name: max(getattr(sizes, name) for sizes in of_tasks) for name in vars(of_tasks[0])}
    return replace(StepSizes(**largest), images=images, masks=max(largest["masks"], 1))


def _activations(settings: Mapping[str, Any], sizes: StepSizes, checkpointing: bool) -> int:
    dtype = torch.bfloat16 if settings["bf16"] or settings["fp16"] else torch.float32
    return activations_of(_trained_model(settings), sizes, gradient_checkpointing=checkpointing, dtype=dtype)


def _trained_model(settings: Mapping[str, Any]) -> PsalmForSegmentation:
    """The shapes of a trial's model, with what is trained marked."""
    model = shapes_of(settings)
    set_trainable(model, **{name: settings[name] for name in FREEZING})
    return model
