"""What the odd graphs are built with: `Net` collects nodes and weights, `odd` makes a builder of what fills one."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray
Dim = int | str

FEEDS = 8
FREE_SIZES = {"N": (2, 3, 4), "H": (12, 16), "W": (16, 10, 14), "S": (6, 9)}
"""The sizes that a free axis takes, feed after feed."""


@dataclass(frozen=True, slots=True)
class OddGraph:
    """A model with one oddity, data to run it with, and the nodes of layer types that must stay float."""

    name: str
    model: onnx.ModelProto
    feeds: list[dict[str, Array]]
    keeps_float: frozenset[str] = frozenset()


Builder = Callable[[], OddGraph]
ODD_GRAPHS: list[Builder] = []
REFUSED: list[Builder] = []
"""Builders of models that hold nothing to quantize."""
NOT_IN_ORT: list[Builder] = []
"""Builders of legal models that onnxruntime loads only once their node names are cleared."""


def odd(
    fill: Callable[[Net], None] | None = None,
    *,
    opset: int = 13,
    ir: int | None = None,
    dtype: type[np.floating] = np.float32,
    entries: list[Builder] = ODD_GRAPHS,
) -> Any:
    """Make a builder of the function `fill(net)` and enter it in a list; the case has the function's name.

    An operator set newer than the installed onnx is left out.
    """
    if fill is None:
        return functools.partial(odd, opset=opset, ir=ir, dtype=dtype, entries=entries)

    def build() -> OddGraph:
        net = Net(fill.__name__, opset=opset, ir=ir, dtype=dtype)
        fill(net)
        return net.finish()

    build.__name__, build.__doc__ = fill.__name__, fill.__doc__
    if opset <= onnx.defs.onnx_opset_version():
        entries.append(build)
    return build


class Net:
    """A graph that grows node by node; tensors are their names, and the channel count of each is remembered."""

    def __init__(self, name: str, *, opset: int, ir: int | None = None, dtype: type[np.floating] = np.float32):
        self.name, self.opset, self.ir, self.dtype = name, opset, ir, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.keeps_float: set[str] = set()
        self.channels: dict[str, int] = {}
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._counts: dict[str, int] = {}
        self._samplers: dict[str, Callable[[int], Array]] = {}
        self._edits: list[Callable[[onnx.ModelProto], None]] = []

    # Inputs, constants, outputs

    def image(self, shape: Sequence[Dim] = ("N", 3, 16, 16), *, name: str = "x", dtype: Any = None) -> str:
        """A graph input fed with smooth random images [N, C, ...]."""
        return self._input(name, shape, dtype or self.dtype, smooth_images)

    def input(self, shape: Sequence[Dim], *, name: str = "x", dtype: Any = None, high: int = 2) -> str:
        """A graph input fed with normal numbers, or with whole numbers below `high` when the type is integral."""

        def draw(rng: np.random.Generator, sizes: Sequence[int]) -> Array:
            integral = not np.issubdtype(np.dtype(dtype or self.dtype), np.floating)
            return rng.integers(0, high, sizes) if integral else rng.normal(size=sizes)

        return self._input(name, shape, dtype or self.dtype, draw)

    def _input(self, name: str, shape: Sequence[Dim], dtype: Any, draw: Callable[..., Array]) -> str:
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {name}".encode()))

        def sample(feed: int) -> Array:
            sizes = [d if isinstance(d, int) else FREE_SIZES[d][feed % len(FREE_SIZES[d])] for d in shape]
            return draw(rng, sizes).astype(dtype)

        self._samplers[name] = sample
        self.inputs.append(helper.make_tensor_value_info(name, onnx_type(dtype), shape))
        if len(shape) > 1 and isinstance(shape[1], int):
            self.channels[name] = shape[1]
        return name

    def const(self, value: Any, name: str | None = None, dtype: Any = None) -> str:
        """An initializer; whole numbers become int64, others the type of the net."""
        array = np.asarray(value)
        dtype = dtype or (np.int64 if np.issubdtype(array.dtype, np.integer) else self.dtype)
        name = name or self.fresh("const")
        self.weights[name] = array.astype(dtype)
        return name

    def constant_node(self, value: Any) -> str:
        """The output of a Constant node that holds whole numbers."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, np.int64)))

    def weight(self, name: str, shape: Sequence[int], fan_in: float | None = None) -> str:
        """An initializer with uniform weights, as torch starts with, that keep the size of the activations."""
        values = self.rng.uniform(-1, 1, size=shape) * np.sqrt(6 / (fan_in or np.prod(shape[1:])))
        return self.const(values, name)

    def output(self, tensor: str, shape: Sequence[Dim] | None = None, dtype: Any = None) -> None:
        """Make `tensor` a graph output; type and shape are inferred unless given."""
        self.outputs.append(helper.make_tensor_value_info(tensor, onnx_type(dtype or self.dtype), shape))

    # Nodes

    def fresh(self, kind: str) -> str:
        """`kind` with the next number behind it."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"

    def op(self, op_type: str, *inputs: str, name: str | None = None, channels: int = 0, **attributes: Any) -> str:
        """Add a node with one output; it has the channels of its first input unless told."""
        name = name or self.fresh(op_type.lower())
        out = f"{name}.out"
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=name, **attributes))
        known = channels or (self.channels.get(inputs[0], 0) if inputs else 0)
        if known:
            self.channels[out] = known
        return out

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def conv(
        self,
        x: str,
        c_out: int = 16,
        kernel: int = 3,
        *,
        name: str | None = None,
        weight: str | None = None,
        bias: str | bool = True,
        group: int | None = 1,
        axes: int = 2,
        **attributes: Any,
    ) -> str:
        """Add a convolution that keeps the image size unless the attributes say so; None leaves an attribute out."""
        name = name or self.fresh("conv")
        shape = (c_out, self.channels[x] // (group or 1), *[kernel] * axes)
        inputs = [x, weight or self.weight(f"{name}.weight", shape), *self._bias(name, c_out, bias)]
        given = {"kernel_shape": [kernel] * axes, "pads": [kernel // 2] * 2 * axes, "group": group} | attributes
        return self.op("Conv", *inputs, name=name, channels=c_out, **without_none(given))

    def conv_transpose(
        self,
        x: str,
        c_out: int = 16,
        kernel: int = 4,
        *,
        group: int = 1,
        axes: int = 2,
        bias: bool = True,
        **given: Any,
    ) -> str:
        """Add a transposed convolution that doubles the image size unless the attributes say otherwise."""
        name = self.fresh("up")
        shape = (self.channels[x], c_out // group, *[kernel] * axes)
        weight = self.weight(f"{name}.weight", shape, fan_in=shape[0] / group * (kernel / 2) ** axes)
        usual = {"kernel_shape": [kernel] * axes, "strides": [2] * axes, "pads": [1] * 2 * axes, "group": group}
        inputs = [x, weight, *self._bias(name, c_out, bias)]
        return self.op("ConvTranspose", *inputs, name=name, channels=c_out, **without_none(usual | given))

    def gemm(
        self,
        x: str,
        c_out: int = 10,
        *,
        name: str | None = None,
        weight: str | None = None,
        bias: str | bool = True,
        transB: int = 1,
        **attributes: Any,
    ) -> str:
        """Add a fully connected layer over [N, C]."""
        name, c_in = name or self.fresh("fc"), self.channels[x]
        shape = (c_out, c_in) if transB else (c_in, c_out)
        inputs = [x, weight or self.weight(f"{name}.weight", shape, c_in), *self._bias(name, c_out, bias)]
        return self.op("Gemm", *inputs, name=name, channels=c_out, transB=transB, **attributes)

    def matmul(self, x: str, c_in: int, c_out: int, *, name: str | None = None) -> str:
        """Add a product of activations [..., c_in] with a weight [c_in, c_out]."""
        name = name or self.fresh("matmul")
        return self.op("MatMul", x, self.weight(f"{name}.weight", (c_in, c_out), c_in), name=name)

    def _bias(self, name: str, c_out: int, bias: str | bool) -> list[str]:
        if isinstance(bias, str):
            return [bias]
        return [self.const(self.rng.normal(size=c_out) * 0.1, f"{name}.bias")] if bias else []

    def batch_norm(self, x: str) -> str:
        """Add a BatchNormalization with the statistics of a trained network; one scale is negative."""
        name, c = self.fresh("bn"), self.channels[x]
        scale, variance = self.rng.uniform(0.5, 1.5, c), self.rng.uniform(0.5, 2, c)
        shift, mean = self.rng.normal(size=(2, c)) * 0.3
        scale[0] = -scale[0]
        parts = {"scale": scale, "shift": shift, "mean": mean, "var": variance}
        inputs = [self.const(value, f"{name}.{part}") for part, value in parts.items()]
        return self.op("BatchNormalization", x, *inputs, name=name, epsilon=1e-3)

    # Frequent parts

    def head(self, x: str, c_out: int = 10) -> None:
        """Add GlobalAveragePool, Flatten and a Gemm, and make that the output."""
        self.output(self.gemm(self.op("Flatten", self.op("GlobalAveragePool", x)), c_out, name="head"))

    def classifier(self, x: str | None = None) -> None:
        """Add Conv, Relu, Conv, Relu and the head, over `x` or a graph input of that name."""
        self.head(self.relu(self.conv(self.relu(self.conv(x or self.image())))))

    def body(self, name: str) -> Net:
        """A net for the body of an If or Loop: it sees the tensors of this one and draws from the same numbers."""
        net = Net(name, opset=self.opset, dtype=self.dtype)
        net.rng, net.channels, net._counts = self.rng, self.channels, self._counts
        return net

    # The result

    def rename_ends(self, new: dict[str, str]) -> None:
        """Give the graph inputs and outputs new names; nodes and weights are left as they are."""
        for end in (*self.inputs, *self.outputs):
            end.name = new.get(end.name, end.name)
        self._samplers = {new.get(name, name): sample for name, sample in self._samplers.items()}

    def afterwards(self, edit: Callable[[onnx.ModelProto], None]) -> None:
        """Apply `edit` to the finished model."""
        self._edits.append(edit)

    def graph(self) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        inputs = list(self.inputs)
        if self.ir is not None and self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
        return helper.make_graph(self.nodes, self.name, inputs, self.outputs, tensors)

    def finish(self) -> OddGraph:
        domains = [helper.make_opsetid(function.domain, 1) for function in self.functions]
        opsets = [helper.make_opsetid("", self.opset), *domains]
        ir = self.ir or helper.find_min_ir_version_for(opsets[:1])
        ir = max(ir, 8) if self.functions else ir
        model = helper.make_model(self.graph(), opset_imports=opsets, ir_version=ir, functions=self.functions)
        declare_outputs(model)
        for edit in self._edits:
            edit(model)
        feeds = [{name: sample(feed) for name, sample in self._samplers.items()} for feed in range(FEEDS)]
        return OddGraph(self.name, model, feeds, frozenset(self.keeps_float))


def declare_outputs(model: onnx.ModelProto) -> None:
    """Give the outputs that have no shape the type and shape that follow from the graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for output, known in zip(model.graph.output, inferred.graph.output, strict=True):
        if not output.type.tensor_type.HasField("shape"):
            output.type.CopyFrom(known.type)


def smooth_images(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Random images without sharp edges, each with a brightness of its own, and a little noise."""
    image = rng.normal(size=(*shape[:2], *(size // 4 + 2 for size in shape[2:])))
    for axis, size in enumerate(shape[2:], start=2):
        left, mix = np.divmod(np.arange(size), 4)
        mix = (mix / 4).reshape(-1, *[1] * (len(shape) - axis - 1))
        image = image.take(left, axis) * (1 - mix) + image.take(left + 1, axis) * mix
    brightness = rng.normal(size=(shape[0], *[1] * (len(shape) - 1)))
    return image + 0.5 * brightness + 0.1 * rng.normal(size=shape)


def onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def without_none(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
