"""Metrics of the field, in percent, equal to the official tools'. Needs numpy only."""

from psalm.evaluation.panoptic_quality import PanopticQuality

__all__ = ["PanopticQuality"]
