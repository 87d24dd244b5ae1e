"""What the deformable module contributes: quality with it, without its tokens, and without it at all; for any task.

For every seed the same settings are trained twice, with ``mm_projector_type`` deformable and swin_conv. The deformable
model is then scored again with its deformable tokens zeroed: what it has learnt to read from them is lost, which is
not the same as never having had them.

    python -m psalm.tools.module_contribution --config runs/tiny/trials/0000/artifacts/config.yaml
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psalm.train.arguments import check_settings, parse_settings, with_defaults
from psalm.train.checkpoint_files import FINAL_MODEL
from psalm.train.command_line import read_config
from psalm.train.evaluate import evaluate_checkpoint
from psalm.train.tasks import metric_names
from psalm.train.train import build_trainer, train

SHOWN_METRICS = 3
"""Of a run's metrics, the main one first."""
UNTRAINED, DEFORMABLE, ZEROED, SWIN_CONV = "untrained", "deformable", "deformable, tokens zeroed", "swin_conv"


def measure(settings: Mapping[str, Any], seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of each variant for one seed; the runs are kept below ``folder``."""

    def arguments(projector: str) -> Any:
        changed = {"mm_projector_type": projector, "seed": seed, "save_final_model": True}
        return parse_settings({**settings, **changed, "output_dir": str(folder / f"{projector}-{seed}")})

    scores = {UNTRAINED: build_trainer(arguments("deformable")).evaluate()}
    for projector in (DEFORMABLE, SWIN_CONV):
        scores[projector] = train(arguments(projector))
    scores[ZEROED] = evaluate_checkpoint(folder / f"deformable-{seed}" / FINAL_MODEL, zero_deformable_tokens=True)
    return scores


def table(scores: Mapping[int, Mapping[str, Mapping[str, float]]], metrics: Sequence[str]) -> str:
    """Markdown: a row per variant, the mean and every seed's value per metric."""
    lines = ["| model | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for variant in (DEFORMABLE, ZEROED, SWIN_CONV, UNTRAINED):
        cells = []
        for metric in metrics:
            values = [of_seed[variant][metric] for of_seed in scores.values()]
            cells.append(f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what the deformable module contributes, seed by seed.")
    parser.add_argument("--config", required=True, help="A run's settings, such as a trial's artifacts/config.yaml.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds to train with.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/contribution"), help="Where the runs are kept.")
    options = parser.parse_args()
    settings = read_config(options.config)
    metrics = metric_names(with_defaults(check_settings(settings)))[:SHOWN_METRICS]
    scores = {}
    for seed in options.seeds:
        scores[seed] = measure(settings, seed, options.output_dir)
        for variant, figures in scores[seed].items():
            sys.stdout.write(f"seed {seed}, {variant}: {metrics[0]} {figures[metrics[0]]:.2f}\n")
    (options.output_dir / "contribution.json").write_text(json.dumps(scores, indent=2) + "\n")
    sys.stdout.write(table(scores, metrics) + "\n")


if __name__ == "__main__":
    main()
