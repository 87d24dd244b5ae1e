"""Mask2Former's mask decoder, as PSALM uses it: pixel decoder, predictor, matching and losses."""
