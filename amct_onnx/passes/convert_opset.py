"""Brings a model to an opset that ATC accepts, by onnx's converter; never by changing the number alone."""

from __future__ import annotations

import onnx
from onnx import version_converter

from amct_onnx.errors import ModelError

LOWEST, HIGHEST = 11, 18
"""The opsets that ATC reads."""


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set.

    Raises:
        ModelError: the model does not say it.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("the model imports no version of the ONNX operators (opset_import)")


def with_accepted_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where ATC reads its opset, else a converted one.

    The caller compares the numbers of both: the converter is not taken at its word.

    Raises:
        ModelError: the converter does not know how to convert one of the operators.
    """
    opset = opset_of(model)
    if LOWEST <= opset <= HIGHEST:
        return model
    target = LOWEST if opset < LOWEST else HIGHEST
    try:
        return version_converter.convert_version(model, target)
    except Exception as error:
        raise ModelError(
            f"the model has opset {opset}; ATC reads {LOWEST} to {HIGHEST}, and it cannot be converted: {error}. "
            f"Export it with an opset from {LOWEST} to {HIGHEST}"
        ) from error
