"""Accuracy-based automatic calibration: quantize as many layers as a metric of the user's allows."""
