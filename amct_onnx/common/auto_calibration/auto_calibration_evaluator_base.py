"""AMCT's import path of one class."""

from amct_onnx.auto_calibration.protocol import AutoCalibrationEvaluatorBase

__all__ = ["AutoCalibrationEvaluatorBase"]
