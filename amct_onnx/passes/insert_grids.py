"""Rewrites the float graph so that every planned tensor is on its grid, in standard operators.

    y = (clip(round(x * amp) + zero, low, high) - zero) * step

Halves go where the strategy says: `Round` sends them to the even neighbour, and what it did is put right behind it.
Weights and biases are stored as the values that their integers stand for.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from amct_onnx.kernels.grid import Grid, fake_quantized
from amct_onnx.passes.correct_biases import corrected_bias
from amct_onnx.passes.graph import Graph, Node, Tensor, set_input, unique_name
from amct_onnx.passes.invariants import PLANNED, STANDARD_ONLY, UNSHARED
from amct_onnx.passes.layers import bias_input
from amct_onnx.passes.quantize_weights import fake_quantized as fake_weight
from amct_onnx.passes.state import Pass, QuantState


class Insertion:
    """A graph that grows behind one of its tensors, and the names that are taken in it."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.nodes, self.tensors = graph, graph.node_names(), graph.tensor_names()

    def start(self, tensor: Tensor) -> None:
        """Go on behind the node that produces `tensor`, or at the front of the graph."""
        self._prefix, self._source = tensor.name, tensor
        self._last: Node | None = tensor.inputs[0] if tensor.inputs else None
        self._first: Node | None = None
        self._anchor: Node | None = None

    def before(self, node: Node) -> None:
        """Go on in front of `node` instead."""
        self._anchor = node

    def put(self, op: str, word: str, inputs: list[Tensor], **attributes: object) -> Tensor:
        """One more node; its output."""
        name = unique_name(f"{self._prefix}.{word}", self.nodes)
        output = self.graph.new_tensor(unique_name(f"{name}.output0", self.tensors))
        where = {"after": self._last} if self._anchor is None else {"before": self._anchor}
        self._last = self.graph.insert(op, name, inputs, output, attributes, **where)
        self._first = self._first or self._last
        return output

    def constant(self, word: str, values: object, dtype: type = np.float32) -> Tensor:
        """An initializer."""
        name = unique_name(f"{self._prefix}.{word}", self.tensors)
        return self.graph.new_constant(name, np.asarray(values, dtype))

    def finish(self) -> None:
        """Let everyone who read the tensor read what was put behind it; a model's output keeps its name."""
        assert self._first is not None, "nothing was put behind the tensor"
        assert self._last is not None
        source, result = self._source, self._last.outputs[0]
        if source.inputs and self.graph.is_output(source):
            own = unique_name(f"{source.name}.float", self.tensors)
            result.name, source.name = source.name, own
            result.dtype, result.shape = source.dtype, source.shape
        self.graph.replace_uses(source, result, keep=self._first)
        if not source.inputs:  # an input that the model hands on stays what was fed
            for index, output in enumerate(self.graph.outputs):
                if output is result:
                    self.graph.outputs[index] = source


def _run(state: QuantState) -> None:
    insertion = Insertion(state.graph)
    store_parameters(state)
    for tensor in tensors_on_grids(state):
        _insert(insertion, tensor, state.grids[tensor.name])


def tensors_on_grids(state: QuantState) -> list[Tensor]:
    """The tensors of the graph that have a grid, in its order."""
    produced = [tensor for node in state.graph.nodes for tensor in node.outputs]
    return [tensor for tensor in (*state.graph.inputs, *produced) if tensor.name in state.grids]


def store_parameters(state: QuantState, *, casts_only: bool = False) -> None:
    """Put weights and biases on their grids, as floats; or only those that are cast to a float type."""
    names = state.graph.tensor_names()
    weights, biases = (
        {name for name, grid in grids.items() if not (casts_only and grid.datatype == "int")}
        for grids in (state.weight_grids, state.bias_grids)
    )
    for node in list(state.graph.nodes):
        if node.name in weights:
            set_input(node, 1, state.graph.new_constant(node.inputs[1].name, fake_weight(state, node)))
        bias = corrected_bias(state, node) if node.name in biases else None
        place = bias_input(state.graph, node)
        if bias is not None and place is not None:
            holder, index = place
            fresh = fake_quantized(bias, state.bias_grids[node.name]).astype(bias.dtype)
            name = unique_name(f"{node.name}.bias.quantized", names)
            set_input(holder, index, state.graph.new_constant(name, fresh))


def insert_cast(insertion: Insertion, tensor: Tensor, grid: Grid) -> None:
    """Let a tensor go through a float type."""
    if grid.datatype != "float32":
        insertion.start(tensor)
        number = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[grid.datatype]
        small = insertion.put("Cast", "fakequant.cast", [tensor], to=int(number))
        insertion.put("Cast", "fakequant.float", [small], to=int(TensorProto.FLOAT))
        insertion.finish()


def _insert(insertion: Insertion, tensor: Tensor, grid: Grid) -> None:
    if grid.datatype != "int":
        insert_cast(insertion, tensor, grid)
        return
    insertion.start(tensor)
    value = insertion.put("Mul", "fakequant.mul", [tensor, insertion.constant("fakequant.amp", grid.amp)])
    value = _rounded(insertion, value, grid.round_mode)
    zero = None if not grid.zero_point else insertion.constant("fakequant.zero_point", grid.zero_point)
    if zero is not None:
        value = insertion.put("Add", "fakequant.add", [value, zero])
    ends = [insertion.constant(f"fakequant.{word}", end) for word, end in (("low", grid.low), ("high", grid.high))]
    value = insertion.put("Clip", "fakequant.clip", [value, *ends])
    if zero is not None:
        value = insertion.put("Sub", "fakequant.sub", [value, zero])
    insertion.put("Mul", "fakequant.scale", [value, insertion.constant("fakequant.step", grid.step)])
    insertion.finish()


def _rounded(insertion: Insertion, value: Tensor, mode: str) -> Tensor:
    if mode == "half_even":
        return insertion.put("Round", "fakequant.round", [value])
    if mode == "half_up":
        return _moved_halves(insertion, value, 0.5, "Add")
    sign = insertion.put("Sign", "fakequant.sign", [value])
    size = insertion.put("Abs", "fakequant.abs", [value])
    whole = (
        _moved_halves(insertion, size, 0.5, "Add")
        if mode == "std_round"
        else _moved_halves(insertion, size, -0.5, "Sub")
    )
    return insertion.put("Mul", "fakequant.signed", [whole, sign])


def _moved_halves(insertion: Insertion, value: Tensor, half: float, op: str) -> Tensor:
    """Round, and go one up (or down) where that went down (or up) by a half; the difference is exact."""
    whole = insertion.put("Round", "fakequant.round", [value])
    rest = insertion.put("Sub", "fakequant.rest", [value, whole])
    is_half = insertion.put("Equal", "fakequant.is_half", [rest, insertion.constant("fakequant.half", half)])
    one = insertion.put("Cast", "fakequant.one", [is_half], to=int(TensorProto.FLOAT))
    return insertion.put(op, "fakequant.moved", [whole, one])


INSERT_GRIDS = Pass(
    name="insert grids", run=_run, requires=(PLANNED, STANDARD_ONLY, UNSHARED), ensures=(STANDARD_ONLY,)
)
