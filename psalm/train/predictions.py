"""Predictions of an evaluation in COCO's result formats, below ``predictions/`` of the run's folder.

======================================  =============================================================================
file                                    format
======================================  =============================================================================
panoptic_predictions.json and folder    COCO panoptic: segments, and a PNG per image
instance_predictions.json               COCO detection results
semantic_predictions.json               COCO-Stuff results: one RLE per class and image
{referring,region,cross_image}_...json  the same with what was asked: ``ref_id``, ``annotation_id``, ``prompt``
======================================  =============================================================================
"""

import json
from pathlib import Path
from typing import Any

from psalm.constants import PANOPTIC
from psalm.data.images import write_segment_map
from psalm.data.questions import Asked
from psalm.train.scorers import PanopticAnswer, Scorer
from psalm.train.scoring import of_all_ranks

FOLDER = "predictions"


class PredictionWriter:
    """Collects the answers of one task on every rank; rank 0 writes them over those of an earlier evaluation."""

    def __init__(self, run_folder: Path, scorer: Scorer[Any]) -> None:
        self.scorer = scorer
        self.path = run_folder / FOLDER / f"{scorer.data.task}_predictions.json"
        self._results: dict[int, list[dict[str, Any]]] = {}

    def add(self, asked: Asked, answer: Any) -> None:
        """One question and its answer."""
        self._results[asked.item] = self.scorer.results(asked, answer)
        if isinstance(answer, PanopticAnswer):
            png = self.path.with_suffix("") / self._results[asked.item][0]["file_name"]
            png.parent.mkdir(parents=True, exist_ok=True)
            write_segment_map(png, answer.segment_map)

    def finish(self, rank: int) -> None:
        """Writes all ranks' results in the order of the questions."""
        parts = of_all_ranks(self._results)
        if rank != 0:
            return
        ordered = sorted((item, results) for part in parts for item, results in part.items())
        results: Any = [entry for _, of_item in ordered for entry in of_item]
        if self.scorer.data.task == PANOPTIC:
            categories = [
                {"id": info.id, "name": info.name, "isthing": int(info.isthing)} for info in self.scorer.data.classes
            ]
            results = {"annotations": results, "categories": categories}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}")
        draft.write_text(json.dumps(results))
        draft.replace(self.path)
