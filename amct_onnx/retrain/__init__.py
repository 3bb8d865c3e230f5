"""Training over ONNX: models as torch modules, and quantization-aware training. Needs the extra `retrain`."""

from __future__ import annotations

from amct_onnx.errors import NotAvailableError

try:
    import torch as torch
except ImportError as error:
    raise NotAvailableError("training needs torch, which is not installed: pip install 'amct_onnx[retrain]'") from error
