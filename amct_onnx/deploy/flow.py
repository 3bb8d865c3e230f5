"""Where integers flow: from AscendQuant through a layer to AscendDequant, found in one pass over the nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from onnx import TensorProto

from amct_onnx.deploy.tensors import dims_of, is_int4
from amct_onnx.deploy.view import Node, Value, View

LAYER_OPS = frozenset({"AveragePool", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"})
"""Operators that compute on integers between AscendQuant and AscendDequant."""

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})

WINDOW_CACHE = {"BasicLSTMInplaceFillWindowCache": (5, 8), "BasicGRUInplaceFillWindowCache": (4, 7)}
"""Recurrent operators of Ascend's -> index of their bias and of their dequantization scale."""

MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that hand integers on as they are."""

_Item = TypeVar("_Item", Node, "Layer")
_MOST = 64  # quants or layers remembered for one value; keeps hostile graphs linear
_MOST_STEPS = 8


@dataclass(slots=True, eq=False, kw_only=True)
class Quantized:
    """An int8 value: the AscendQuant nodes it comes from; `mixed` where something else was joined to it."""

    quants: tuple[Node, ...]
    mixed: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Layer:
    """A node that computes on integers.

    source: what its input 0 is; None where that does not come from AscendQuant.
    second: the same for input 1, of a MatMul of two activations.
    weight: the constant behind input 1, None where there is none.
    weight_dims: its shape as the node sees it, behind a Transpose.
    """

    node: Node
    source: Quantized | None
    second: Quantized | None
    weight: Value | None
    weight_dims: tuple[int, ...]
    add: Node | None = None

    @property
    def group(self) -> int:
        """Groups of a convolution; 1 for anything else, and for what is no number above 0."""
        group = self.node.integer("group", 1) if self.node.op in ("Conv", "ConvTranspose") else 1
        return group if group is not None and group > 0 else 1

    @property
    def output_channels(self) -> int | None:
        """Number of outputs, None where the weight does not tell."""
        op, dims = self.node.op, self.weight_dims
        if op in POOLS or len(dims) < 2:
            return None
        if op == "Conv":
            return dims[0]
        if op == "ConvTranspose":
            return dims[1] * self.group
        return dims[0] if op == "Gemm" and self.node.integer("transB", 0) else dims[-1]

    @property
    def input_channels(self) -> int | None:
        """Number of inputs as the weight has them: halved where two 4-bit values share a byte."""
        op, dims = self.node.op, self.weight_dims
        if op in POOLS or len(dims) < 2:
            return None
        if op == "Conv":
            return dims[1] * self.group
        if op == "ConvTranspose":
            return dims[0]
        return dims[1] if op == "Gemm" and self.node.integer("transB", 0) else dims[-2]

    @property
    def quants(self) -> tuple[Node, ...]:
        """The AscendQuant nodes in front of input 0."""
        return () if self.source is None else self.source.quants

    def bias(self) -> Value | None:
        """What is added to each output: input 2, or what the Add behind it adds."""
        if self.add is not None:
            operands = [v for v in self.add.inputs if v is not None and v.tensor is not None]
            return operands[0] if operands else None
        return self.node.input(2) if self.node.op in ("Conv", "ConvTranspose", "Gemm") else None


@dataclass(slots=True, eq=False, kw_only=True)
class Accumulated:
    """An int32 value: the layers it comes from, and how many channels, None where that is not known."""

    layers: tuple[Layer, ...]
    channels: int | None


@dataclass(slots=True, eq=False, kw_only=True)
class Flow:
    """layers: in order. `fed`: AscendQuant -> the layers behind it, by identity."""

    layers: list[Layer] = field(default_factory=list)
    fed: dict[int, list[Layer]] = field(default_factory=dict)
    states: dict[int, Quantized | Accumulated] = field(default_factory=dict)

    def quantized(self, value: Value | None) -> Quantized | None:
        """What is known of an int8 value, None for any other."""
        state = None if value is None else self.states.get(id(value))
        return state if isinstance(state, Quantized) else None

    def accumulated(self, value: Value | None) -> Accumulated | None:
        """What is known of an int32 value, None for any other."""
        state = None if value is None else self.states.get(id(value))
        return state if isinstance(state, Accumulated) else None

    def fed_by(self, quant: Node) -> list[Layer]:
        """The layers behind an AscendQuant."""
        return self.fed.get(id(quant), [])


def flow_of(view: View) -> Flow:
    """Follow the integers through the model."""
    flow = Flow()
    for node in view.nodes:
        state = _state(flow, node)
        if state is not None:
            for value in node.outputs:
                if value is not None:
                    flow.states[id(value)] = state
    return flow


def _state(flow: Flow, node: Node) -> Quantized | Accumulated | None:
    if node.op == "AscendQuant":
        return Quantized(quants=(node,))
    if node.op in LAYER_OPS and node.is_standard:
        return _entered(flow, node)
    if node.op == "Add":
        return _biased(flow, node)
    if node.op in MOVES:
        return _moved(flow, node)
    return None


def _entered(flow: Flow, node: Node) -> Accumulated | None:
    """The node as a layer, where it computes on integers."""
    weight, dims = (None, ()) if node.op in POOLS else behind_transposes(node.input(1))
    layer = Layer(
        node=node,
        source=flow.quantized(node.input(0)),
        second=flow.quantized(node.input(1)) if node.op == "MatMul" else None,
        weight=weight,
        weight_dims=dims,
    )
    tensor = None if weight is None else weight.tensor
    integers = tensor is not None and (tensor.data_type == TensorProto.INT8 or is_int4(tensor))
    result = node.output()
    dequantized = result is not None and any(user.op == "AscendDequant" and not i for user, i in result.consumers)
    if layer.source is None and layer.second is None and not integers and not dequantized:
        return None
    flow.layers.append(layer)
    for quant in layer.quants:
        flow.fed.setdefault(id(quant), []).append(layer)
    return Accumulated(layers=(layer,), channels=layer.output_channels)


def _biased(flow: Flow, node: Node) -> Accumulated | None:
    """An Add of a constant to the result of one layer belongs to that layer."""
    states = [flow.accumulated(value) for value in node.inputs]
    found = [state for state in states if state is not None]
    others = [value for value, state in zip(node.inputs, states, strict=True) if state is None]
    if len(found) != 1 or len(found[0].layers) != 1 or any(v is None or v.tensor is None for v in others):
        return None
    (layer,) = found[0].layers
    if layer.bias() is not None:
        return None
    layer.add = node
    return found[0]


def _moved(flow: Flow, node: Node) -> Quantized | Accumulated | None:
    values = node.inputs if node.op == "Concat" else node.inputs[:1]
    quantized = [state for value in values if (state := flow.quantized(value)) is not None]
    if quantized:
        quants = _first(quant for state in quantized for quant in state.quants)
        return Quantized(quants=quants, mixed=len(quantized) < len(values) or any(s.mixed for s in quantized))
    parts = [part for value in values if (part := flow.accumulated(value)) is not None]
    if node.op != "Concat" or not parts or len(parts) < len(values):
        return None
    counts = [part.channels for part in parts if part.channels is not None]
    return Accumulated(
        layers=_first(layer for part in parts for layer in part.layers),
        channels=sum(counts) if len(counts) == len(parts) else None,
    )


def _first(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """The first different ones, in order."""
    kept: dict[int, _Item] = {}
    for item in items:
        kept.setdefault(id(item), item)
        if len(kept) == _MOST:
            break
    return tuple(kept.values())


def behind_transposes(value: Value | None) -> tuple[Value | None, tuple[int, ...]]:
    """The constant behind a value, through Transpose and Identity, and its shape in front of them."""
    orders: list[tuple[int, ...] | None] = []
    for _ in range(_MOST_STEPS):
        if value is None:
            break
        if value.tensor is not None:
            return value, _permuted(dims_of(value.tensor), orders)
        node = value.producer
        if node is None or node.op not in ("Identity", "Transpose"):
            break
        if node.op == "Transpose":
            orders.append(node.integers("perm"))
        value = node.input(0)
    return None, ()


def _permuted(dims: tuple[int, ...], orders: list[tuple[int, ...] | None]) -> tuple[int, ...]:
    for order in reversed(orders):
        order = order or tuple(range(len(dims)))[::-1]
        if sorted(order) != list(range(len(dims))):
            return ()
        dims = tuple(dims[axis] for axis in order)
    return dims
