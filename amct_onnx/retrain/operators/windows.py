"""Where the windows of convolutions and poolings lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from amct_onnx.retrain.operators.call import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """One entry per spatial axis.

    begins, ends: padding in front of and behind the data; what only `ceil_mode` needs is not in it.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """From the first to the last value that a window reads."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def counts(self, sizes: Sequence[int], *, ceil: bool) -> list[int]:
        """How many windows there are; with `ceil` also such as begin in the data and reach beyond the padding."""
        counts = []
        for size, span, stride, begin, end in zip(sizes, self.spans, self.strides, self.begins, self.ends, strict=True):
            room = size + begin + end - span
            count = -(-room // stride) + 1 if ceil else room // stride + 1
            counts.append(count - 1 if ceil and (count - 1) * stride >= size + begin else count)
        return counts

    def excess(self, sizes: Sequence[int], *, ceil: bool) -> list[int]:
        """What the last window reads beyond the padding behind the data, per axis; negative where some is not read."""
        return [
            (count - 1) * stride + span - size - begin - end
            for count, stride, span, size, begin, end in zip(
                self.counts(sizes, ceil=ceil), self.strides, self.spans, sizes, self.begins, self.ends, strict=True
            )
        ]


def windows_of(call: Call, kernel: Sequence[int], sizes: Sequence[int]) -> Windows:
    """The windows of a node over data of these spatial sizes."""
    axes = len(kernel)
    strides = tuple(call.get("strides") or [1] * axes)
    dilations = tuple(call.get("dilations") or [1] * axes)
    mode = call.get("auto_pad", "NOTSET")
    pads = list(call.get("pads") or [0] * (2 * axes))
    if mode == "VALID":
        pads = [0] * (2 * axes)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-size // stride) - 1) * stride + (k - 1) * d + 1 - size)
            for size, stride, k, d in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        smaller, larger = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = [*smaller, *larger] if mode == "SAME_UPPER" else [*larger, *smaller]
    return Windows(
        kernel=tuple(kernel),
        strides=strides,
        dilations=dilations,
        begins=tuple(pads[:axes]),
        ends=tuple(pads[axes:]),
    )


def padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` with its last axes padded, or cut where a number is negative."""
    if not any(begins) and not any(ends):
        return x
    flat = [side for pair in reversed(list(zip(begins, ends, strict=True))) for side in pair]
    return functional.pad(x, flat, value=value)
