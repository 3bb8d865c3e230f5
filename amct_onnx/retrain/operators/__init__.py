"""ONNX's operators in torch: one table of small functions, in files by kind. `If` is in `program.py`."""

from __future__ import annotations

from collections.abc import Mapping

from amct_onnx.retrain.operators import (
    activations,
    arithmetic,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
)
from amct_onnx.retrain.operators.call import Operator

OPERATORS: Mapping[str, Operator] = {
    **activations.OPERATORS,
    **arithmetic.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **recurrent.OPERATORS,
    **reduction.OPERATORS,
    **resize.OPERATORS,
    **shape.OPERATORS,
}
"""Operator -> what computes it."""
