"""Writes a deploy model out in standard operators that compute exactly what its integers do.

An int8 tensor between AscendQuant and a layer becomes a float32 tensor that holds q - offset, so that padding by zeros
is padding by the offset. Accumulators are int32, those of pooling float32. Casts stand between the layer and its scale:
they keep onnxruntime from multiplying the scale into the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from amct_onnx.deploy.edits import Chain, Edits
from amct_onnx.deploy.integer_layers import LAYERS, add_constant, product
from amct_onnx.deploy.merging import MERGED, merge_requants
from amct_onnx.deploy.operands import (
    Integers,
    Sums,
    check_ends,
    guarded,
    integers_of,
    label_of,
    lift_constants,
    scale_words,
    settle_operand,
)
from amct_onnx.deploy.profiles import HALF_MAX, HALF_MIN_NORMAL, Profile
from amct_onnx.deploy.unpacking import unpack_weights
from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.kernels.quant_params import truncate_to_s19
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    Tensor,
    has_input,
    is_standard,
    producer,
    reads,
    set_input,
)

_ACROSS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"})
_ACROSS |= {"Expand", "Tile", "Gather"}
"""Operators that hand values on as they are, and may put the channels elsewhere."""

_ALONG = frozenset({"Concat", "Identity", "MaxPool", "Pad", "Slice", "Split"})
"""Operators that hand values on as they are and leave the channels on their axis."""

_SHAPES = frozenset({"Shape", "Size"})

_FLOAT_MAX = float(np.finfo(np.float32).max)

_FOLDS_SCALES = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul"})
"""Float operators into whose weights onnxruntime would multiply the scale of an AscendQuant behind them."""


def lower(graph: Graph, profile: Profile) -> None:
    """Rewrite a deploy model's graph in place.

    Raises:
        ModelError: the graph is no deploy model, or quantized values reach an operator that cannot take them.
        NotAvailableError: a form that is not simulated: shifts, activations of 4 or 16 bits, recurrent layers.
    """
    if graph.opset < 11:
        raise NotAvailableError(f"the model's operator set is {graph.opset}; 11 and later are simulated")
    lift_constants(graph)
    check_ends(graph)
    unpack_weights(graph)
    merge_requants(graph, profile)
    lowering = _Lowering(graph, profile)
    for node in list(graph.nodes):
        guarded(node, lambda node=node: lowering.lower(node))  # type: ignore[misc]
    lowering.check_outputs()


class _Lowering:
    """The graph, and what is known of its quantized tensors on the way through it."""

    def __init__(self, graph: Graph, profile: Profile) -> None:
        self.graph = graph
        self.profile = profile
        self.edits = Edits(graph)
        self.known: dict[int, Integers | Sums] = {}  # by the id of the tensor
        self._alive: list[Tensor] = []  # what these ids belong to

    def lower(self, node: Node) -> None:
        if is_standard(node) and node.op == "AscendQuant":
            self._quant(node)
            return
        if is_standard(node) and node.op == "AscendDequant":
            self._dequant(node)
            return
        if not any(id(tensor) in self.known for tensor in reads(node)) or node.op in _SHAPES:
            return
        state = self.known.get(id(node.inputs[0])) if node.inputs else None
        if is_standard(node) and node.op in LAYERS and isinstance(state, Integers):
            self._layer(node, state)
        elif is_standard(node) and node.op == "AscendAntiQuant":
            self._anti_quant(node)
        elif is_standard(node) and node.op in _ALONG | _ACROSS:
            self._move(node)
        elif is_standard(node) and node.op == "Add":
            self._add(node)
        else:
            self._refuse(node)

    def _note(self, tensor: Tensor, known: Integers | Sums) -> None:
        self._alive.append(tensor)
        self.known[id(tensor)] = known

    def _refuse(self, node: Node) -> None:
        found = [self.known[id(tensor)] for tensor in reads(node) if id(tensor) in self.known]
        if isinstance(found[0], Sums):
            raise ModelError(
                f"{label_of(node)} reads an accumulator, which only AscendDequant, the Add of an int32 constant and "
                "operators that move data can take"
            )
        raise ModelError(
            f"{label_of(node)} reads quantized values, which only Conv, ConvTranspose, Gemm, MatMul, AveragePool and "
            "operators that move data can take"
        )

    def check_outputs(self) -> None:
        """No output of the model is quantized."""
        for tensor in self.graph.outputs:
            if id(tensor) in self.known:
                raise ModelError(f"output {tensor.name!r} of the model holds integers; AscendDequant must give it")

    def _layer(self, node: Node, known: Integers) -> None:
        second = self.known.get(id(node.inputs[1])) if node.op == "MatMul" else None
        if isinstance(second, Integers):
            result = node.outputs[0]
            self._note(result, product(self.edits, node, known, second))
            return
        if any(id(tensor) in self.known for tensor in list(node.inputs)[1:]):
            raise ModelError(f"{label_of(node)} has a weight or a bias that is computed from quantized values")
        result = node.outputs[0]
        self._note(result, LAYERS[node.op](self.edits, node, known))

    def _add(self, node: Node) -> None:
        states = [self.known.get(id(tensor)) for tensor in node.inputs]
        sums = [state for state in states if isinstance(state, Sums)]
        if len(states) != 2 or len(sums) != 1 or states.count(None) != 1:
            self._refuse(node)
        bias = settle_operand(self.graph, node, states.index(None), self.edits.names)
        if bias is None or bias.dtype != np.int32:
            raise ModelError(f"{label_of(node)} adds something else than an int32 constant to an accumulator")
        result = node.outputs[0]
        result.dtype = result.shape = None
        self._note(result, add_constant(self.edits, node, bias, sums[0]))

    def _move(self, node: Node) -> None:
        data = list(node.inputs) if node.op == "Concat" else list(node.inputs)[:1]
        states = [self.known.get(id(tensor)) for tensor in data]
        others = [tensor for tensor in list(node.inputs)[len(data) :] if id(tensor) in self.known]
        first = states[0]
        if first is None or others or any(type(state) is not type(first) for state in states):
            raise ModelError(f"{label_of(node)} joins quantized values with others, or takes them for a shape")
        result: Integers | Sums
        if isinstance(first, Integers):
            if any(state != first for state in states):
                raise ModelError(f"{label_of(node)} joins tensors that are quantized with different offsets")
            result = first
        else:
            result = _moved(node, [state for state in states if isinstance(state, Sums)])
        if node.op == "Pad":
            self._fill(node, first)
        for tensor in node.outputs:
            tensor.dtype = None
        if node.op == "MaxPool":
            for tensor in list(node.outputs)[1:]:
                if tensor.outputs or self.graph.is_output(tensor):
                    raise ModelError(f"{label_of(node)} over quantized values gives indices, which nothing can take")
            if isinstance(first, Sums):  # onnxruntime has none over int32
                chain = self.edits.before(node).cast(TensorProto.DOUBLE).add("MaxPool", **node.attrs)
                self._note(self.edits.stand_in(node, chain.cast(TensorProto.INT32)), result)
                return
        for tensor in node.outputs:
            self._note(tensor, result)

    def _fill(self, node: Node, known: Integers | Sums) -> None:
        """What a Pad fills with, in terms of the tensor that it pads now."""
        if isinstance(known, Sums):
            raise ModelError(f"{label_of(node)} pads an accumulator")
        if node.attrs.get("mode", "constant") != "constant":
            return
        value = settle_operand(self.graph, node, 2, self.edits.names) if has_input(node, 2) else np.zeros(1)
        if value is None or value.size != 1 or not known.low <= float(value.ravel()[0]) <= known.high:
            raise ModelError(f"{label_of(node)} of quantized values must have a constant value from -128 to 127")
        padding = np.asarray(float(value.ravel()[0]) - known.offset, np.float32)
        set_input(node, 2, self.edits.constant(f"{node.name}.value", padding))

    # AscendQuant and AscendAntiQuant

    def _quant(self, node: Node) -> None:
        known = integers_of(node)
        if id(node.inputs[0]) in self.known:
            self._refuse(node)
        scale, offset = np.float32(node.attrs["scale"]), np.float32(known.offset)
        chain = self.edits.before(node).cast(TensorProto.FLOAT)
        if node.attrs.get(MERGED):
            chain.add("Round").add("Clip", np.float32(-256), np.float32(255)).add("Add", offset)
        elif self.profile.half_quant:
            _half_quant(chain, scale, offset)
        else:
            before = producer(node.inputs[0])
            if before is not None and before.op in _FOLDS_SCALES:
                chain.add("Clip", np.float32(-_FLOAT_MAX), np.float32(_FLOAT_MAX))
            chain.add("Mul", scale)
            if offset:
                chain.add("Add", offset)
        chain.add("Round")
        rounded = chain.value
        chain.add("IsNaN").add("Where", np.float32(0), rounded)  # as the chip's casts do
        chain.add("Clip", np.float32(known.low), np.float32(known.high))
        if offset:
            chain.add("Sub", offset)
        self._note(self.edits.stand_in(node, chain), known)

    def _anti_quant(self, node: Node) -> None:
        known = self.known.get(id(node.inputs[0]))
        if not isinstance(known, Integers) or integers_of(node).offset != known.offset:
            raise ModelError(f"{label_of(node)} does not undo the AscendQuant before it")
        scale = np.float32(node.attrs["scale"])
        if self.profile.half_quant:
            scale = np.float32(np.float16(scale))
        chain = self.edits.before(node).add("Mul", scale)
        if self.profile.half_result:
            chain.half()
        if self._gives_half(node, known):
            chain.cast(TensorProto.FLOAT16)
        self.edits.stand_in(node, chain)

    def _gives_half(self, node: Node, known: Integers | Sums) -> bool:
        """Whether the result is float16; in float16 networks AMCT says float32 and means float16."""
        declared: Any = node.outputs[0].dtype
        if node.attrs.get("dtype", 0) == 1:
            return True
        if declared is None or isinstance(declared, int):
            return known.is_half
        return bool(np.dtype(declared) == np.float16)

    # AscendDequant

    def _dequant(self, node: Node) -> None:
        source = node.inputs[0]
        sums = self.known.get(id(source))
        if not isinstance(sums, Sums):
            raise ModelError(f"{label_of(node)} reads {source.name!r}, which is no accumulator of a layer")
        scale = scale_words(self.graph, node, self.edits.names)
        if scale.size > 1 and sums.channels not in (None, scale.size):
            raise ModelError(f"{label_of(node)} has {scale.size} scales for {sums.channels} channels")
        if scale.size > 1 and (sums.channel_axis is None or (sums.channel_axis == 1 and sums.rank is None)):
            raise ModelError(f"{label_of(node)} has one scale per channel, but the channels were moved in between")
        if scale.size > 1 and sums.channel_axis == 1 and sums.rank is not None:
            scale = scale.reshape(-1, *[1] * (sums.rank - 2))
        chain = self.edits.before(node).cast(TensorProto.FLOAT)
        self._scale(chain, node, scale)
        if node.attrs.get("relu_flag", 0):
            chain.add("Relu")
        if self._gives_half(node, sums) and not node.attrs.get(MERGED):
            chain.cast(TensorProto.FLOAT16)
        self.edits.stand_in(node, chain)

    def _scale(self, chain: Chain, node: Node, scale: Array) -> None:
        by_root = bool(node.attrs.get("sqrt_mode", 0))
        if self.profile.scale == "truncated":
            scale = truncate_to_s19(scale)
        elif self.profile.scale == "half":
            if not by_root and (scale < HALF_MIN_NORMAL).any():
                by_root, scale = True, np.sqrt(scale)
            scale = np.clip(scale, 0, HALF_MAX).astype(np.float16).astype(np.float32)
        for _ in range(2 if by_root else 1):
            chain.add("Mul", scale)
            if self.profile.half_result and not node.attrs.get(MERGED):
                chain.add("Clip", np.float32(-HALF_MAX), np.float32(HALF_MAX)).half()


def _half_quant(chain: Chain, scale: np.float32, offset: np.float32) -> None:
    """AscendQuant in float16: a scale that float16 has no normal number for is kept as its root."""
    chain.half()
    if scale != 1:
        by_root = not HALF_MIN_NORMAL <= scale <= HALF_MAX
        factor = np.float32(np.float16(np.sqrt(scale) if by_root else scale))
        for _ in range(2 if by_root else 1):
            chain.add("Mul", factor).half()
    if offset or scale == 1:
        chain.add("Add", np.float32(np.float16(offset))).half()


def _moved(node: Node, states: list[Sums]) -> Sums:
    """What an accumulator holds that was moved, or several that were joined."""
    first = states[0]
    axis = first.channel_axis
    if node.op in _ACROSS or any(s.channel_axis != axis or (axis == 1 and s.rank != first.rank) for s in states):
        return Sums(channel_axis=None, largest=max(s.largest for s in states), is_half=first.is_half)
    keeps_channels = node.op in ("Identity", "MaxPool")
    return Sums(
        channel_axis=axis,
        channels=first.channels if keeps_channels else None,
        rank=first.rank,
        largest=max(s.largest for s in states),
        is_half=first.is_half,
    )
