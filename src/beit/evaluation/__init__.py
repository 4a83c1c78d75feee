"""Evaluate a classifier: accuracy, calibration, ImageNet's test sets, corruptions."""
