"""Average precision of instance masks (COCO, Lin et al., arXiv 1405.0312), computed by pycocotools.

Letters: T detections in an image, H W size of the image.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_GROUPS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first of COCOeval's statistics, in its order."""
_UNDEFINED = -1
"""COCOeval's figure for a group without ground truth."""
_ALL_AREAS, _MOST_DETECTIONS = 0, -1
"""Places in COCOeval's table of precisions [threshold, recall, category, area, detections]."""
_REQUIRED_KEYS = {
    "images": ("id", "height", "width"),
    "categories": ("id",),
    "annotations": ("image_id", "category_id", "segmentation", "area", "iscrowd"),
}

Records = list[dict[str, Any]]


class InstanceAP:
    """AP in percent: over IoU thresholds 0.5 to 0.95, at 0.5, at 0.75, and of small, medium and large objects.

    Of the detections of a category in an image, the hundred with the highest scores count. A detection that matches a
    crowd is neither right nor wrong. Objects are small up to 32 x 32 pixels and large from 96 x 96, by the annotations'
    ``area``. Only images that were updated are evaluated.

    Figures are the same bits for any order of images and any number of ranks, as COCOeval takes images in the order of
    their ids; among equal scores in an image the order given decides.
    """

    def __init__(self, ground_truth: Mapping[str, Any]) -> None:
        """``ground_truth`` is the content of a COCO instances file, which is read and never changed.

        ValueError, with the place in it, if it lacks a key that pycocotools needs.
        """
        _check_keys(ground_truth)
        self._images = {image["id"]: image for image in ground_truth["images"]}
        self._categories = {category["id"]: category for category in ground_truth["categories"]}
        self._annotations = ground_truth["annotations"]
        self._results: dict[int, Records] = {}
        self._last: tuple[int, COCOeval] | None = None  # of how many images, and what was found

    def update(
        self,
        image_id: int,
        category_ids: NDArray[np.integer],
        scores: NDArray[np.floating],
        masks: NDArray[np.bool_],
    ) -> None:
        """Count one image, also if it has no detections.

        Args:
            image_id: an id of the ground truth; every image counts once.
            category_ids: int [T], ids of the ground truth, not indices.
            scores: float [T], finite.
            masks: bool [T, H, W], at the size that the ground truth says.

        Raises:
            ValueError: one of them is not so.
        """
        self._check_new([image_id])
        image = self._images[image_id]
        self._check_detections(image, category_ids, scores, masks)
        # pycocotools counts runs down the columns.
        rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
        self._results[image["id"]] = [
            {
                "image_id": image["id"],
                "category_id": category,
                "segmentation": {"size": list(masks.shape[1:]), "counts": rle["counts"].decode("ascii")},
                "score": score,
            }
            for category, score, rle in zip(category_ids.tolist(), scores.tolist(), rles, strict=True)
        ]

    def state(self) -> dict[int, Records]:
        """The results of every image counted so far, by its id."""
        return dict(self._results)

    def add_state(self, state: Mapping[int, Records]) -> None:
        """Add another rank's state to this one; ValueError for an image that is unknown or counted already."""
        self._check_new(state)
        self._results.update(state)

    def results(self) -> Records:
        """All detections in COCO's format of results, ready for ``json.dump``, in the order of image ids.

        The keys are image_id, category_id, segmentation (RLE whose counts are str) and score.
        """
        return [result for image_id in sorted(self._results) for result in self._results[image_id]]

    def compute(self) -> dict[str, float]:
        """``ap ap50 ap75 ap_small ap_medium ap_large`` in percent.

        A group without ground truth in the images counted is left out; one with ground truth and without detections
        has AP 0.
        """
        figures = zip(_GROUPS, self._evaluation().stats.tolist(), strict=False)
        return {name: 100 * figure for name, figure in figures if figure != _UNDEFINED}

    def per_category(self) -> dict[int, dict[str, float]]:
        """``ap`` in percent of every category with ground truth in the images counted, by its id."""
        evaluation = self._evaluation()
        precision = evaluation.eval["precision"][:, :, :, _ALL_AREAS, _MOST_DETECTIONS]
        return {
            category: {"ap": 100 * float(of_category[of_category != _UNDEFINED].mean())}
            for category, of_category in zip(evaluation.params.catIds, precision.transpose(2, 0, 1), strict=True)
            if (of_category != _UNDEFINED).any()
        }

    def _evaluation(self) -> COCOeval:
        """What pycocotools finds in the images counted so far; once for as many as there are."""
        if self._last is None or self._last[0] != len(self._results):
            self._last = (len(self._results), self._evaluate())
        return self._last[1]

    def _evaluate(self) -> COCOeval:
        images = [self._images[image_id] for image_id in self._results]
        truth = [annotation for annotation in self._annotations if annotation["image_id"] in self._results]
        # What COCO.loadRes adds to results; loadRes itself fails without any.
        detections = [
            {**result, "area": coco_mask.area(result["segmentation"]), "iscrowd": 0} for result in self.results()
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco(images, truth), self._coco(images, detections), iouType="segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _coco(self, images: Records, annotations: Records) -> COCO:
        """pycocotools' view of annotations. They are copied, as it writes into them, and numbered from 1.

        pycocotools uses ids as names only, except that the id 0 reads as "not matched" there.
        """
        coco = COCO()
        coco.dataset = {
            "images": images,
            "categories": list(self._categories.values()),
            "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        }
        coco.createIndex()
        return coco

    def _check_detections(
        self,
        image: Mapping[str, Any],
        category_ids: NDArray[np.integer],
        scores: NDArray[np.floating],
        masks: NDArray[np.bool_],
    ) -> None:
        count = masks.shape[:1]
        arrays: tuple[tuple[str, NDArray[Any], type[np.generic], tuple[int, ...]], ...] = (
            ("masks", masks, np.bool_, (*count, image["height"], image["width"])),
            ("category_ids", category_ids, np.integer, count),
            ("scores", scores, np.floating, count),
        )
        for name, array, kind, shape in arrays:
            if not np.issubdtype(array.dtype, kind) or array.shape != shape:
                raise ValueError(
                    f"{name} of image {image['id']} must be {kind.__name__} {list(shape)}, "
                    f"but got {array.dtype} {list(array.shape)}"
                )
        if not np.isfinite(scores).all():
            raise ValueError(f"scores of image {image['id']} must be finite, but got {scores.tolist()}")
        unknown = sorted(set(category_ids.tolist()) - self._categories.keys())
        if unknown:
            raise ValueError(
                f"category_ids of image {image['id']} must be ids of the ground truth's categories, but got {unknown}"
            )

    def _check_new(self, image_ids: Iterable[int]) -> None:
        for image_id in image_ids:
            if image_id not in self._images:
                raise ValueError(f"image {image_id} is not among the {len(self._images)} images of the ground truth")
            if image_id in self._results:
                raise ValueError(f"image {image_id} was counted already: every image counts once")


def _check_keys(ground_truth: Mapping[str, Any]) -> None:
    for part, keys in _REQUIRED_KEYS.items():
        if part not in ground_truth:
            raise ValueError(f"the ground truth has no key {part!r}: COCO instances format is expected")
        for number, record in enumerate(ground_truth[part]):
            for key in keys:
                if key not in record:
                    raise ValueError(f"{part}[{number}] has no key {key!r}: COCO instances format is expected")
    for number, annotation in enumerate(ground_truth["annotations"]):
        if not annotation["segmentation"]:
            raise ValueError(f"annotations[{number}].segmentation is empty: pycocotools needs polygons or an RLE")
