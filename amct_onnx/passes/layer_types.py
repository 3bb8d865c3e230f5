"""The types of layers, under the names that ONNX, torch, Caffe and TensorFlow have for them."""

from __future__ import annotations

from amct_onnx.errors import ConfigError, nearest

RECURRENT = ("GRU", "LSTM")
"""Operators with two weights, and with a hidden state beside their input."""

QUANTIZABLE = ("AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
"""Operators that the engine can quantize."""

PER_CHANNEL = frozenset({"Conv", "ConvTranspose", *RECURRENT})
"""Operators whose weights may have one scale per output channel on the chip."""

_NAMES: dict[str, tuple[tuple[str, ...], int | None]] = {
    **{op: ((op,), None) for op in QUANTIZABLE},
    # torch
    "Conv1d": (("Conv",), 1),
    "Conv2d": (("Conv",), 2),
    "Conv3d": (("Conv",), 3),
    "ConvTranspose1d": (("ConvTranspose",), 1),
    "ConvTranspose2d": (("ConvTranspose",), 2),
    "ConvTranspose3d": (("ConvTranspose",), 3),
    "Linear": (("Gemm", "MatMul"), None),
    "AvgPool1d": (("AveragePool",), 1),
    "AvgPool2d": (("AveragePool",), 2),
    "AvgPool3d": (("AveragePool",), 3),
    # Caffe
    "Convolution": (("Conv",), None),
    "Deconvolution": (("ConvTranspose",), None),
    "InnerProduct": (("Gemm", "MatMul"), None),
    "Pooling": (("AveragePool",), None),
    # TensorFlow
    "Conv2D": (("Conv",), 2),
    "DepthwiseConv2dNative": (("Conv",), 2),
    "Conv3D": (("Conv",), 3),
    "Conv2DBackpropInput": (("ConvTranspose",), 2),
    "AvgPool": (("AveragePool",), None),
}
"""Name -> (operators it stands for, number of spatial axes where the name says it)."""


def check_layer_type(name: str) -> None:
    """Raise ConfigError unless `name` is the name of a layer type in any of the frameworks."""
    if name not in _NAMES:
        known = ", ".join(sorted(_NAMES))
        raise ConfigError(f"unknown layer type {name!r}{nearest(name, _NAMES) or ';'} known types: {known}")


def is_of_type(name: str, op_type: str, spatial_axes: int | None, depthwise: bool) -> bool:
    """Whether a node of `op_type` is what `name` stands for; a node of unknown rank matches every rank."""
    operators, axes = _NAMES[name]
    if name == "DepthwiseConv2dNative" and not depthwise:
        return False
    return op_type in operators and (axes is None or spatial_axes is None or axes == spatial_axes)


def says_rank(name: str) -> bool:
    """Whether `name` stands for one number of spatial axes only, as Conv2d does."""
    return _NAMES[name][1] is not None
