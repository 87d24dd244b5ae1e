"""PSALM with the Deformable module: a multimodal segmentation model and its training loop."""
