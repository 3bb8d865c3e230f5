"""Nothing but AMCT's import path: scripts say `from amct_onnx.common.auto_calibration import ...`."""
