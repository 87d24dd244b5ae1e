"""How much room a search's checkpoints need, found out before it starts."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psalm.model.freezing import set_trainable
from psalm.train.arguments import argument_fields, with_defaults
from psalm.train.disk import GB, MARGIN, SMALL_FILES, Budget, weights_bytes
from psalm.train.inputs import shapes_of
from tune.config import SearchConfig
from tune.errors import SearchError
from tune.space.parameters import Value

OPTIMIZER_BYTES = 12
"""Of a trained number: AdamW's two moments and, with DeepSpeed, the weight that it updates, in float32."""
FREEZING = ("train_backbone", "freeze_backbone", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter")


@dataclass(frozen=True)
class Room:
    """Bytes that a search needs for its largest trials.

    Args:
        trials: that run at a time.
        checkpoint: of one; there are two while one takes the other's place.
        models: that are kept.
        model: one of them.
    """

    trials: int
    checkpoint: int
    models: int
    model: int

    @property
    def needed(self) -> int:
        """All of it."""
        return self.trials * 2 * self.checkpoint + self.models * self.model

    def check(self, folder: Path, budget: float | None) -> None:
        """Whether there is room.

        Args:
            folder: of the search; what its trials hold there already may be used again.
            budget: what a user allows, in GB.

        Raises:
            SearchError: there is too little; with both figures.
        """
        need = (
            f"the search needs about {self.needed / GB:.3g} GB for checkpoints ({self.trials} trials at a time x 2 x "
            f"{self.checkpoint / GB:.3g} GB, {self.models} final models x {self.model / GB:.3g} GB)"
        )
        less = "lower --max-concurrent or --keep-best, or leave checkpoints out: --set save_strategy=no"
        if budget is not None and self.needed > budget * GB:
            raise SearchError(f"--checkpoint-budget {budget:g}: {need}; give more, or {less}")
        trials = folder / "trials"
        place = trials if trials.exists() else folder
        free = shutil.disk_usage(place).free + Budget(place, 0).used() - MARGIN
        if self.needed > free:
            raise SearchError(
                f"{need}, but {place} has {max(free, 0) / GB:.3g} GB free; free some, give another --storage-path, "
                f"or {less}"
            )


def room_for(config: SearchConfig, trials: int, keep_best: int) -> Room:
    """What a search needs, by the sizes of the models in its space; only their shapes are built.

    Args:
        config: the search.
        trials: how many run at a time.
        keep_best: how many final models are kept.
    """
    sizes = _sizes_of_largest(config)
    saved, kept = (with_defaults(config.arguments)[name] for name in ("save_strategy", "save_final_model"))
    return Room(
        trials=trials,
        checkpoint=max(checkpoint for checkpoint, _ in sizes) if saved != "no" else 0,
        models=min(keep_best, config.num_samples) if kept else 0,
        model=max(model for _, model in sizes),
    )


def _sizes_of_largest(config: SearchConfig) -> list[tuple[int, int]]:
    """Bytes of a checkpoint and of a final model of trials of which some have the largest.

    Of each part of a setting the largest is found after the other, with what was found for those before.
    """
    decisive = [name for name, field in argument_fields().items() if field.group == "model" or name in FREEZING]
    found: dict[str, tuple[int, int]] = {}

    def size(*parts: Mapping[str, Value]) -> int:
        setting = {name: value for part in parts for name, value in part.items()}
        settings = with_defaults(config.dependents.complete(config.arguments, setting))
        key = repr([settings[name] for name in decisive])
        if key not in found:
            found[key] = _sizes(settings)
        return sum(found[key])

    largest = config.space.largest()
    parts = [candidates[0] for candidates in largest]
    size(*parts)
    for place, candidates in enumerate(largest):
        sizes = [size(*parts[:place], each, *parts[place + 1 :]) for each in candidates]
        parts[place] = candidates[sizes.index(max(sizes))]
    return list(found.values())


def _sizes(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a checkpoint and of a final model, at most."""
    model = shapes_of(settings)
    set_trainable(model, **{name: settings[name] for name in FREEZING})
    weights = weights_bytes(model) + SMALL_FILES
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weights + OPTIMIZER_BYTES * trained, weights
