"""A layer as products of matrices: which inputs meet which weights at sampled places of its output.

The sample is fixed: every place of every batch draws a number, from a seed that depends on the batch alone, and the
smallest numbers are kept. So it does not depend on what is in the data, nor on how many batches there will be.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import DataError
from amct_onnx.kernels.gather import gather_rows
from amct_onnx.passes.graph import Node
from amct_onnx.passes.layers import group_of

Indices = NDArray[np.int64]

_SEED = 20

_HELD_BACK = 8
"""One sample out of so many, or one place where there are few samples, is kept for judging what was learned."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Where a layer's outputs were sampled, R places: those to learn from, then those to judge by, in random order.

    batch: [R], the calibration batch.
    sample: [R], the number of the sample, counted over all batches along the first axis.
    index: [R, 1 + S], the index along the first axis and the S spatial ones; for products of matrices [R, 1], the row.
    spatial: sizes of the spatial axes of the output, by batch.
    learnable: number of places to learn from.
    """

    batch: Indices
    sample: Indices
    index: Indices
    spatial: dict[int, tuple[int, ...]]
    learnable: int


class OutputSampler:
    """Looks at a layer's output, batch by batch in order, and keeps what stands at sampled places."""

    def __init__(self, node: Node, limit: int) -> None:
        """`limit`: the number of places to keep at most."""
        self._is_spatial = node.op in ("Conv", "ConvTranspose")
        self._limit = limit
        self._numbers = np.empty(0)
        self._where = np.empty((0, 3), np.int64)  # batch, sample, place within the batch
        self._values: NDArray[np.float32] | None = None
        self._spatial: dict[int, tuple[int, ...]] = {}
        self._batches = self._samples = 0

    def update(self, output: NDArray[Any]) -> None:
        """Take in the output of the next batch, [N, C, ...] of a convolution, [..., C] of a product of matrices."""
        if self._is_spatial:
            self._spatial[self._batches] = tuple(output.shape[2:])
            table = output.reshape(*output.shape[:2], -1)
            count, each = table.shape[0] * table.shape[2], table.shape[2]
        else:
            table = output.reshape(-1, output.shape[-1])
            count, each = len(table), len(table) // max(output.shape[0] if output.ndim > 1 else 1, 1)
        numbers = np.random.default_rng([_SEED, self._batches]).random(count)
        kept = np.flatnonzero(numbers <= self._worst())
        if len(kept) > self._limit:
            kept = kept[np.argpartition(numbers[kept], self._limit)[: self._limit]]
        values = table[kept // each, :, kept % each] if self._is_spatial else table[kept]
        where = np.stack([np.full(len(kept), self._batches), self._samples + kept // max(each, 1), kept], axis=1)
        self._merge(numbers[kept], where, values.astype(np.float32))
        self._batches += 1
        self._samples += count // max(each, 1)

    def _worst(self) -> float:
        return float(self._numbers[-1]) if len(self._numbers) == self._limit else 1.0

    def _merge(self, numbers: NDArray[np.float64], where: Indices, values: NDArray[np.float32]) -> None:
        numbers = np.concatenate([self._numbers, numbers])
        order = np.argsort(numbers, kind="stable")[: self._limit]
        self._numbers = numbers[order]
        self._where = np.concatenate([self._where, where])[order]
        self._values = (values if self._values is None else np.concatenate([self._values, values]))[order]

    def values(self) -> NDArray[np.float32]:
        """What stands at the places, [R, C]."""
        assert self._values is not None, "a batch was seen"
        return self._values[self._order()[0]]

    def places(self) -> Places:
        """The places, in the order of `values`."""
        order, learnable = self._order()
        batch, sample, flat = self._where[order].T
        index = flat[:, None]
        if self._is_spatial:
            index = np.empty((len(flat), 1 + len(self._spatial[0])), np.int64)
            for number, sizes in self._spatial.items():
                chosen = batch == number
                index[chosen, 0], flat_place = np.divmod(flat[chosen], math.prod(sizes))
                index[chosen, 1:] = np.stack(np.unravel_index(flat_place, sizes), axis=1)
        return Places(batch=batch, sample=sample, index=index, spatial=self._spatial, learnable=learnable)

    def _order(self) -> tuple[Indices, int]:
        """Those to learn from first, and how many these are."""
        numbers = self._where[:, 1]
        if len(np.unique(numbers)) < _HELD_BACK:
            numbers = np.arange(len(numbers))
        is_held = numbers % _HELD_BACK == _HELD_BACK - 1
        return np.argsort(is_held, kind="stable"), int((~is_held).sum())


class InputSampler:
    """Looks at a layer's input, batch by batch, and gathers the values that meet the weights at the places.

    rows: [G, R, K], K as in the weight with its output channels first.
    """

    def __init__(self, node: Node, places: Places) -> None:
        self._node, self._places = node, places
        self._batches = 0
        groups, size = matrix_shape(node)
        self.rows = np.empty((groups, len(places.batch), size), np.float32)

    def update(self, array: NDArray[Any]) -> None:
        """Take in the input of the next batch."""
        chosen = np.flatnonzero(self._places.batch == self._batches)
        if len(chosen):
            index = self._places.index[chosen]
            many = len(array) if self._node.op in ("Conv", "ConvTranspose") else array.size // max(array.shape[-1], 1)
            if index[:, 0].max() >= many:
                raise DataError(f"calibration batch {self._batches} is smaller than it was when it was read before")
            if self._node.op in ("Conv", "ConvTranspose"):
                offsets = _offsets(self._node, array.shape[2:], index, self._places.spatial[self._batches])
                values = np.ascontiguousarray(array, np.float32).reshape(*array.shape[:2], -1)
                gather_rows(values, index[:, 0].copy(), offsets, chosen, self.rows)
            else:
                self.rows[0, chosen] = array.reshape(-1, array.shape[-1])[index[:, 0]]
        self._batches += 1

    def finished(self) -> NDArray[np.float32]:
        """The rows, when all batches were seen.

        Raises:
            DataError: there were less batches than before.
        """
        if len(self._places.batch) and self._places.batch.max() >= self._batches:
            raise DataError(
                f"the calibration data hold {self._batches} batches, but held more when they were read before"
            )
        return self.rows


def matrix_shape(node: Node) -> tuple[int, int]:
    """Groups G, and weights K that an output channel has."""
    shape = node.inputs[1].shape
    groups = group_of(node)
    if node.op == "Conv":
        return groups, int(np.prod(shape[1:]))
    if node.op == "ConvTranspose":
        return groups, int(shape[0]) // groups * int(np.prod(shape[2:]))
    return 1, int(shape[0])


def _offsets(node: Node, inputs: tuple[int, ...], index: Indices, output: tuple[int, ...]) -> Indices:
    """Which input value each weight of a kernel meets at each place, in flat spatial axes, [r, taps]; -1 outside."""
    kernel = tuple(int(k) for k in node.inputs[1].shape[2:])
    strides, dilations = (node.attrs.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    begins = _begins(node, inputs, output)
    result = np.empty((len(index), math.prod(kernel)), np.int64)
    for tap, steps in enumerate(itertools.product(*map(range, kernel))):
        inside = np.ones(len(index), np.bool_)
        flat = np.zeros(len(index), np.int64)
        for axis, step in enumerate(steps):
            at = index[:, 1 + axis]
            if node.op == "Conv":
                found = at * strides[axis] + step * dilations[axis] - begins[axis]
            else:
                found, rest = np.divmod(at + begins[axis] - step * dilations[axis], strides[axis])
                inside &= rest == 0
            inside &= (found >= 0) & (found < inputs[axis])
            flat = flat * inputs[axis] + found
        result[:, tap] = np.where(inside, flat, -1)
    return result


def _begins(node: Node, inputs: tuple[int, ...], output: tuple[int, ...]) -> list[int]:
    """The padding in front of each spatial axis; of a transposed convolution, what is cut off there."""
    axes = len(inputs)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * axes
    if auto not in ("SAME_UPPER", "SAME_LOWER") and "output_shape" not in node.attrs:
        return [int(pad) for pad in node.attrs.get("pads", [0] * 2 * axes)[:axes]]
    kernel = node.inputs[1].shape[2:]
    strides, dilations = (node.attrs.get(name, [1] * axes) for name in ("strides", "dilations"))
    begins = []
    for axis in range(axes):
        reach = (int(kernel[axis]) - 1) * dilations[axis] + 1
        few, many = (output, inputs) if node.op == "Conv" else (inputs, output)
        more = 0 if node.op == "Conv" else int(node.attrs.get("output_padding", [0] * axes)[axis])
        total = max((few[axis] - 1) * strides[axis] + more + reach - many[axis], 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return begins
