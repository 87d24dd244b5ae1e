"""Losses by name, averaged over the steps since the last log, over accumulation and over ranks."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor


class TrainingDiverged(RuntimeError):  # noqa: N818
    """A loss is no finite number any more; ``step`` is where it first happened."""

    def __init__(self, step: int, losses: Mapping[str, float], last_step: int, last: Mapping[str, float]) -> None:
        self.step = step
        bad = ", ".join(
            f"{name} = {value}" for name, value in losses.items() if not torch.isfinite(torch.tensor(value))
        )
        finite = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
        before = f"last finite values, step {last_step}: {finite}" if last else "there were no finite values before"
        super().__init__(f"loss is not finite at step {step} ({bad}); {before}; a lower learning_rate may help")


class LossWindow:
    """Sums what is logged on the device and reads it only when it is logged: no sync with the CPU per step.

    A loss is averaged over the steps that had it: tasks of a mixture have losses of their own. Every rank must add the
    same names at the same steps. The window is part of a checkpoint, so that a resumed run logs what the
    uninterrupted one logs.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._in_step: set[str] = set()
        self._diverged: Tensor | None = None
        self._last: tuple[int, dict[str, float]] = (0, {})

    def add(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Losses of one micro-batch of the optimizer step ``step`` (from 1); a step's micro-batches add up."""
        for name, loss in losses.items():
            value = loss.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._in_step.add(name)
        total = torch.stack([*self._sums.values()]).sum()
        if self._diverged is None:
            self._diverged = torch.full_like(total, torch.inf)
        self._diverged = torch.where(total.isfinite(), self._diverged, self._diverged.clamp(max=step))

    def end_step(self) -> None:
        """The optimizer step is complete."""
        for name in self._in_step:
            self._steps[name] = self._steps.get(name, 0) + 1
        self._in_step = set()

    def check(self, accelerator: Accelerator) -> None:
        """Raises where a loss since the last log is not finite, on every rank alike.

        Raises:
            TrainingDiverged: it names the step and the last finite values.
        """
        if self._diverged is not None:
            first = float(accelerator.gather(self._diverged.reshape(1)).min())
            if first < torch.inf:
                raise TrainingDiverged(int(first), self._mean(accelerator), *self._last)

    def take(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """The means since the last call, and the start of a new window; empty if nothing was added."""
        self.check(accelerator)
        means = self._mean(accelerator)
        self._sums, self._steps = {}, {}
        if means:
            self._last = (step, means)
        return means

    def save(self, folder: str | Path, rank: int) -> None:
        """Writes this rank's window into the folder of a checkpoint."""
        state = {
            "sums": {name: value.item() for name, value in self._sums.items()},
            "steps": self._steps,
            "last": self._last,
        }
        (Path(folder) / _file(rank)).write_text(json.dumps(state))

    def load(self, folder: str | Path, rank: int, device: torch.device) -> None:
        """Reads this rank's window back; a checkpoint of more or fewer ranks has none, and a new one is begun."""
        path = Path(folder) / _file(rank)
        if not path.is_file():
            return
        state = json.loads(path.read_text())
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in state["sums"].items()
        }
        self._steps = state["steps"]
        self._last = (state["last"][0], state["last"][1])

    def _mean(self, accelerator: Accelerator) -> dict[str, float]:
        if not self._sums:
            return {}
        sums = torch.stack([*self._sums.values()])
        means = accelerator.gather(sums[None]).mean(0).tolist()
        return {name: mean / self._steps.get(name, 1) for name, mean in zip(self._sums, means, strict=True)}


def _file(rank: int) -> str:
    return f"loss_window_{rank}.json"
