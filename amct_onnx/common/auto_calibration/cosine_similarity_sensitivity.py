"""AMCT's import path of one class."""

from amct_onnx.auto_calibration.protocol import CosineSimilaritySensitivity

__all__ = ["CosineSimilaritySensitivity"]
