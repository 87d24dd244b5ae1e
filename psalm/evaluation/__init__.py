"""Metrics of the field, in percent, equal to the official tools'. Needs numpy and pycocotools only.

Every metric counts one sample per ``update``; ``state`` is what was counted, which can be pickled, and ``add_state``
adds another rank's; ``compute`` gives the figures by name, without those that are undefined. Figures are the same bits
for any order of samples and any number of ranks.
"""

from psalm.evaluation.cross_image_iou import CrossImageIoU
from psalm.evaluation.instance_ap import InstanceAP
from psalm.evaluation.panoptic_quality import PanopticQuality
from psalm.evaluation.referring_iou import ReferringIoU
from psalm.evaluation.region_iou import RegionIoU
from psalm.evaluation.semantic_iou import SemanticIoU

__all__ = ["CrossImageIoU", "InstanceAP", "PanopticQuality", "ReferringIoU", "RegionIoU", "SemanticIoU"]
