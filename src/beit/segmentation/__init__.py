"""Semantic segmentation: train, evaluate and apply a segmenter on label maps."""
