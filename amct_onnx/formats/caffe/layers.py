"""Which layer types are converted, by what, and which are left to the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amct_onnx.formats.caffe import arranging, normalizing, pointwise, windows
from amct_onnx.formats.caffe.network import Layer, Shape
from amct_onnx.formats.caffe.site import Site

_MANY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerType:
    """How a layer type is converted.

    convert: adds the nodes of a layer, and returns the shape of each of its tops.
    bottoms, tops: how many there may be, from - to.
    """

    convert: Callable[[Site], list[Shape]]
    bottoms: tuple[int, int] = (1, 1)
    tops: tuple[int, int] = (1, 1)

    def check(self, layer: Layer) -> None:
        """Raise ModelError where a layer has too few or too many bottoms or tops."""
        for what, names, (low, high) in (("bottom", layer.bottoms, self.bottoms), ("top", layer.tops, self.tops)):
            if not low <= len(names) <= high:
                allowed = f"{low}" if low == high else f"at least {low}" if high == _MANY else f"{low} or {high}"
                raise layer.error(f"it must have {allowed} {what}, found {len(names)}: {', '.join(names)}")


LAYER_TYPES: Mapping[str, LayerType] = {
    "AbsVal": LayerType(convert=pointwise.abs_val),
    "BatchNorm": LayerType(convert=normalizing.batch_norm),
    "Bias": LayerType(convert=normalizing.bias, bottoms=(1, 2)),
    "Clip": LayerType(convert=pointwise.clip),
    "Concat": LayerType(convert=arranging.concat, bottoms=(1, _MANY)),
    "Convolution": LayerType(convert=windows.convolution),
    "Crop": LayerType(convert=arranging.crop, bottoms=(2, 2)),
    "Deconvolution": LayerType(convert=windows.deconvolution),
    "ELU": LayerType(convert=pointwise.elu),
    "Eltwise": LayerType(convert=pointwise.eltwise, bottoms=(2, _MANY)),
    "Flatten": LayerType(convert=arranging.flatten),
    "InnerProduct": LayerType(convert=windows.inner_product),
    "Interp": LayerType(convert=arranging.interp, bottoms=(1, 2)),
    "LRN": LayerType(convert=normalizing.lrn),
    "Normalize": LayerType(convert=normalizing.normalize),
    "PReLU": LayerType(convert=pointwise.prelu),
    "Permute": LayerType(convert=arranging.permute),
    "Pooling": LayerType(convert=windows.pooling),
    "Power": LayerType(convert=pointwise.power),
    "ReLU": LayerType(convert=pointwise.relu),
    "ReLU6": LayerType(convert=pointwise.relu6),
    "Reshape": LayerType(convert=arranging.reshape),
    "Scale": LayerType(convert=normalizing.scale, bottoms=(1, 2)),
    "Sigmoid": LayerType(convert=pointwise.sigmoid),
    "Slice": LayerType(convert=arranging.slice_, tops=(1, _MANY)),
    "Softmax": LayerType(convert=arranging.softmax),
    "TanH": LayerType(convert=pointwise.tanh),
    "Upsample": LayerType(convert=arranging.upsample),
}
"""Types that become nodes."""

PASSING = frozenset({"Dropout", "Split"})
"""Types whose tops are their bottom, as it is."""

_HEADS = frozenset(
    {
        *("Accuracy", "DetectionEvaluate", "DetectionOutput", "HDF5Output", "PriorBox", "Silence", "SoftmaxWithLoss"),
        *("Yolov3DetectionOutput", "YoloDetectionOutput"),
    }
)

SIZES_ONLY = frozenset({"PriorBox"})
"""Heads that look at the sizes of what they read only: it is no less an output than without them."""

NOT_READING = SIZES_ONLY | {"Silence"}
"""Heads that need no value of what they read."""


def is_head(layer: Layer) -> bool:
    """Whether a layer, and what is made of its tops, is left to the caller: losses and the ends of detectors."""
    return layer.type in _HEADS or layer.type.endswith("Loss")


def is_known(layer: Layer) -> bool:
    """Whether there is a way to treat a layer."""
    return layer.type in LAYER_TYPES or layer.type in PASSING or is_head(layer)
