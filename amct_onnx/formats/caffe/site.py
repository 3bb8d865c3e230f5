"""The ONNX graph while it is built, and the place of one layer in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, helper, numpy_helper

from amct_onnx.errors import ModelError
from amct_onnx.formats.caffe.network import Layer, Shape
from amct_onnx.formats.caffe.weights import Floats, Weights
from amct_onnx.passes.graph import unique_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A tensor of the ONNX graph that stands for a blob of Caffe."""

    tensor: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParts:
    """What was converted so far.

    graph: nodes and initializers, where they stay: weights are not copied once more.
    tensors, layers: names that are taken: of tensors and of nodes.
    """

    graph: GraphProto
    tensors: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)

    def operator_of(self, tensor: str) -> str | None:
        """The operator that computes a tensor, None for an input."""
        return next((node.op_type for node in reversed(self.graph.node) if tensor in node.output), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of one layer: what it reads, what it shall write, and where its nodes go.

    outputs: a tensor for each top.
    """

    layer: Layer
    inputs: tuple[Blob, ...]
    outputs: tuple[str, ...]
    weights: Weights
    parts: GraphParts

    @property
    def shape(self) -> Shape:
        """Of the first input."""
        return self.inputs[0].shape

    def params(self, block: str) -> Any:
        """The parameters of the layer: the block of this name, with Caffe's defaults where there is none."""
        return getattr(self.layer.message, block)

    def error(self, text: str) -> ModelError:
        """What is wrong with this layer."""
        return self.layer.error(text)

    def arrays(self, **expected: Shape) -> list[Floats]:
        """The layer's weights: what each is called -> the shape that it must have."""
        return self.weights.of(self.layer, expected)

    def axis(self, value: int, *, what: str = "axis", rank: int | None = None) -> int:
        """An axis of the first input, counted from the front."""
        rank = len(self.shape) if rank is None else rank
        if not -rank <= value < rank:
            raise self.error(f"{what} is {value}, but its input has {rank} axes: {list(self.shape)}")
        return value % rank

    def constant(self, role: str, values: NDArray[Any]) -> str:
        """The name of a new initializer."""
        name = self.new_tensor(role)
        self.parts.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def number(self, role: str, value: float) -> str:
        """The name of a new initializer of one float32."""
        return self.constant(role, np.array(value, np.float32))

    def integers(self, role: str, values: Sequence[int]) -> str:
        """The name of a new initializer of int64, as shapes and the like are given."""
        return self.constant(role, np.array(values, np.int64))

    def step(
        self, role: str, operator: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node that does not carry the layer's name; returns the name of its output, a new one for None."""
        output = self.new_tensor(role) if output is None else output
        name = unique_name(f"{self.layer.name}.{role}", self.parts.layers)
        self.parts.graph.node.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def emit(
        self, operator: str, inputs: Sequence[str], *, outputs: Sequence[str] | None = None, **attributes: Any
    ) -> None:
        """Add the node that carries the layer's name; it writes the layer's outputs unless others are given."""
        outputs = self.outputs if outputs is None else outputs
        self.parts.graph.node.append(helper.make_node(operator, inputs, outputs, name=self.layer.name, **attributes))

    def new_tensor(self, role: str) -> str:
        """A free name for a tensor between nodes of this layer."""
        return unique_name(f"{self.layer.name}.{role}", self.parts.tensors)
