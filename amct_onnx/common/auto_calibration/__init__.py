"""The classes that AMCT's scripts derive from, under AMCT's import path; they live in `amct_onnx.auto_calibration`."""

from amct_onnx.auto_calibration.protocol import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    BinarySearchStrategy,
    CosineSimilaritySensitivity,
    SensitivityBase,
)

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "AutoCalibrationStrategyBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "SensitivityBase",
]
