"""Rules about the layers between AscendQuant and AscendDequant: their weights, biases and attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import TensorProto

from amct_onnx.deploy.flow import POOLS, WINDOW_CACHE, Layer
from amct_onnx.deploy.rule import Gap, Problem, Rule, Subject
from amct_onnx.deploy.tensors import dims_of, is_int4, type_name
from amct_onnx.deploy.view import Node, Value, shown
from amct_onnx.deploy.widths import given_channels, input_channels, is_4_bit, is_packed, width

_RANKS = {"Conv": (3, 4, 5), "ConvTranspose": (3, 4, 5), "Gemm": (2,)}
_TRANSPOSES = ("Identity", "Transpose")
_FEW_CHANNELS = 16


def _layers(subject: Subject, *ops: str) -> Iterator[Layer]:
    return (layer for layer in subject.flow.layers if layer.node.op in ops)


def _weights(subject: Subject) -> Iterator[Problem]:
    seen: dict[int, Layer] = {}
    for layer in subject.flow.layers:
        node, weight = layer.node, layer.weight
        if node.op in POOLS or (node.op == "MatMul" and weight is None):  # rule 25 speaks of the latter
            continue
        if weight is None:
            yield Problem(node.label, "a weight that is no constant", "an INT8 initializer")
            continue
        if node.op in _RANKS and len(layer.weight_dims) not in _RANKS[node.op]:
            allowed = " or ".join(map(str, _RANKS[node.op]))
            yield Problem(node.label, f"weight of {len(layer.weight_dims)} axes", f"{allowed} axes")
        if id(weight) not in seen:
            yield from _integers(layer, weight)
        seen.setdefault(id(weight), layer)
    yield from _read_as_float(subject, seen)
    for node in subject.view.of_type(*WINDOW_CACHE):
        for value in (node.input(1), node.input(2)):
            if value is None or value.elem_type != TensorProto.INT8:
                yield Problem(node.label, "a weight that is no INT8 constant", "INT8 initializers at inputs 1 and 2")


def _integers(layer: Layer, weight: Value) -> Iterator[Problem]:
    tensor = weight.tensor
    assert tensor is not None
    if tensor.data_type != TensorProto.INT8 and not is_int4(tensor):
        yield Problem(layer.node.label, f"weight of {type_name(tensor.data_type)}", "INT8")
    elif len(tensor.int32_data) and not -128 <= min(tensor.int32_data) <= max(tensor.int32_data) <= 127:
        yield Problem(layer.node.label, "weights out of range", "integers in [-128, 127]")


def _read_as_float(subject: Subject, weights: dict[int, Layer]) -> Iterator[Problem]:
    """Weights that something else than quantized layers reads."""
    own = {id(layer.node) for layer in subject.flow.layers}
    for layer in weights.values():
        weight = layer.weight
        assert weight is not None
        readers = [user.label for user, _ in weight.consumers if id(user) not in own and user.op not in _TRANSPOSES]
        if readers or weight.is_output:
            reader = f"read by {readers[0]!r}" if readers else "an output of the model"
            yield Problem(layer.node.label, f"weight {shown(weight.name)!r} is {reader} too", "a weight of its own")


def _biases(subject: Subject) -> Iterator[Problem]:
    for layer in subject.flow.layers:
        bias = layer.bias()
        if bias is None:
            continue
        kind, dims = _bias_form(subject, layer, bias)
        if kind is None:
            yield Problem(layer.node.label, f"bias {shown(bias.name)!r} is computed", "an INT32 initializer, or none")
            continue
        if kind != TensorProto.INT32:
            yield Problem(layer.node.label, f"bias of {type_name(kind)}", "INT32")
        channels = layer.output_channels
        if channels is not None and math.prod(dims) != channels:
            yield Problem(layer.node.label, f"bias of shape {list(dims[:8])}", f"{channels} values, one per output")
    for node in subject.view.of_type(*WINDOW_CACHE):
        bias = node.input(WINDOW_CACHE[node.op][0])
        if bias is not None and bias.elem_type != TensorProto.INT32:
            yield Problem(node.label, "a bias that is no INT32 constant", "an INT32 initializer, or none")
            continue
        weight = node.input(1)
        if bias is None or bias.tensor is None or weight is None or weight.tensor is None:
            continue
        found, rows = math.prod(dims_of(bias.tensor)), dims_of(weight.tensor)[1:2]
        if rows and found != 2 * rows[0]:
            yield Problem(node.label, f"bias of {found} values", f"{2 * rows[0]}, one per row of each weight")


def _bias_form(subject: Subject, layer: Layer, bias: Value) -> tuple[int | None, tuple[int, ...]]:
    """Element type and shape of a constant bias; of 4-bit layers also behind a Cast."""
    source: Value | None = bias
    if bias.tensor is None and bias.producer is not None and bias.producer.op == "Cast" and is_4_bit(subject, layer):
        source = bias.producer.input(0)
    if source is None or source.tensor is None:
        return None, ()
    return source.tensor.data_type, dims_of(source.tensor)


def _gemm(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "Gemm"):
        node = layer.node
        for name in ("transA", "transB"):
            if node.integer(name, 0) != 0:
                yield Problem(node.label, f"{name} is not 0", f"{name} 0, the weight stored as [K, N]")
        for name in ("alpha", "beta"):
            if node.real(name, 1.0) != 1.0:
                yield Problem(node.label, f"{name} is not 1", f"{name} 1: any other scales integers")


def _matmul(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "MatMul"):
        node = layer.node
        if layer.second is not None:
            offsets = [quant.real("offset") for quant in (*layer.quants, *layer.second.quants)]
            if layer.source is None or any(offset != 0 for offset in offsets):
                yield Problem(node.label, "two activations, not both symmetric", "a constant weight of two axes")
            else:
                expected = "a constant weight; two activations are read by A2, A3 and 310B alone"
                yield Problem(node.label, "two activations", expected, "warning")
        elif layer.weight is None or len(layer.weight_dims) != 2:
            found = "a weight that is no constant" if layer.weight is None else f"{len(layer.weight_dims)} axes"
            yield Problem(node.label, found, "a constant weight of two axes")
        if layer.add is not None:
            yield from _matmul_bias(node, layer.add)


def _matmul_bias(node: Node, add: Node) -> Iterator[Problem]:
    second, result = add.input(1), node.output()
    if second is None or second.tensor is None:
        yield Problem(add.label, "the bias is the first operand", "the bias as second operand")
    elif len(second.tensor.dims) != 1:
        yield Problem(add.label, f"a bias of {len(second.tensor.dims)} axes", "one axis")
    if result is not None and len(result.consumers) > 1:
        yield Problem(node.label, f"{len(result.consumers)} nodes read the result", "the Add of the bias alone")


def _conv(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "Conv"):
        node, axes = layer.node, len(layer.weight_dims) - 2
        if len(node.inputs) not in (2, 3):
            yield Problem(node.label, f"{len(node.inputs)} inputs", "2 or 3")
        if not {"dilations", "kernel_shape", "pads", "strides"} & set(node.attributes):
            yield Problem(node.label, "no attribute", "one of kernel_shape, pads, strides and dilations")
        for name, times in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 2)):
            values = node.integers(name)
            if values is None or (axes > 0 and values and len(values) != times * axes):
                yield Problem(node.label, f"{name} of another type or length", f"{times * max(axes, 0)} integers")
        if axes == 3:
            yield from _conv_3d(node)
        kernel = node.integers("kernel_shape")
        if axes > 0 and kernel and len(kernel) == axes and kernel != layer.weight_dims[2:]:
            yield Problem(node.label, f"kernel_shape {list(kernel)}", f"{list(layer.weight_dims[2:])}, as the weight")


def _conv_3d(node: Node) -> Iterator[Problem]:
    dilations = node.integers("dilations")
    if dilations and dilations[0] != 1:
        yield Problem(node.label, f"dilation {dilations[0]} in depth", "1 in a 3-D Conv")
    pad = node.string("auto_pad", "NOTSET")
    if pad not in ("NOTSET", "VALID"):
        yield Problem(node.label, f"auto_pad {shown(str(pad))}", "NOTSET or VALID in a 3-D Conv")


def _conv_transpose(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "ConvTranspose"):
        dilations = layer.node.integers("dilations")
        if dilations is None or any(dilation != 1 for dilation in dilations):
            yield Problem(layer.node.label, "dilation", "dilations 1")
        if len(layer.weight_dims) == 5:
            yield Problem(layer.node.label, "a 3-D ConvTranspose", "a weight of at most 4 axes", "warning")
        offset = next((offset for quant in layer.quants if (offset := quant.real("offset"))), 0.0)
        if offset:
            expected = "offset 0: how ATC fills the gaps between the inputs is not published"
            yield Problem(layer.node.label, f"offset {offset:g} in front of ConvTranspose", expected, "warning")


def _pools(subject: Subject) -> Iterator[Problem | Gap]:
    for layer in _layers(subject, "AveragePool", "GlobalAveragePool"):
        node = layer.node
        if node.op == "GlobalAveragePool":
            yield Problem(node.label, "GlobalAveragePool", "AveragePool of a part of the input; ATC undoes others")
            continue
        kernel, strides = node.integers("kernel_shape") or (), node.integers("strides") or ()
        if any(stride > 63 for stride in strides):
            yield Problem(node.label, f"strides {list(strides)}", "at most 63; ATC undoes others")
        if math.prod(kernel) > 255 and max(kernel) >= 20:
            yield Problem(node.label, f"kernel_shape {list(kernel)}", "less than 256 values; ATC undoes others")
        quant = layer.quants[0] if layer.quants else None
        source = None if quant is None else quant.input(0)
        shape = None if source is None else source.shape
        if shape is None or None in shape[2:]:
            yield Gap(node.label, "the file does not say how large the input is")
        elif shape[2:] == kernel:
            yield Problem(node.label, f"kernel_shape {list(kernel)}, all of the input", "less; ATC undoes others")
        elif kernel and _pooled_width(node, shape[-1] or 0, kernel[-1]) == 1:
            yield Problem(node.label, "a result of width 1", "more than one column; ATC undoes others")


def _pooled_width(node: Node, width: int, kernel: int) -> int | None:
    """How many columns a pooling gives; None where its attributes make no sense."""
    strides, pads = node.integers("strides") or (1,), node.integers("pads") or (0,)
    if strides[-1] < 1:
        return None
    pad = node.string("auto_pad", "NOTSET")
    if pad in ("SAME_UPPER", "SAME_LOWER"):
        return -(-width // strides[-1])
    given = 0 if pad == "VALID" else pads[-1] + pads[len(pads) // 2 - 1]
    room = width + given - kernel
    return (-(-room // strides[-1]) if node.integer("ceil_mode", 0) else room // strides[-1]) + 1


def _few_channels(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "Conv"):
        channels = input_channels(subject, layer)
        if channels is not None and channels <= _FEW_CHANNELS:
            expected = f"more than {_FEW_CHANNELS}; on 310, 310P and 910 ATC computes the layer in fp16 instead"
            yield Problem(layer.node.label, f"{channels} input channels", expected)


def _groups(subject: Subject) -> Iterator[Problem]:
    for layer in _layers(subject, "Conv", "ConvTranspose"):
        node, dims = layer.node, layer.weight_dims
        written = node.integer("group", 1)
        if written is None or written < 1:
            yield Problem(node.label, f"group {'of another type' if written is None else written}", "1 or more")
        elif dims and dims[0] % written:
            what = "output" if node.op == "Conv" else "input"
            yield Problem(node.label, f"{dims[0]} {what} channels in {written} groups", "as many in each group")
        else:
            yield from _missing_channels(subject, layer)


def _missing_channels(subject: Subject, layer: Layer) -> Iterator[Problem]:
    """Whether the weight has every input channel, where the file says how many there are."""
    given, channels = given_channels(layer), layer.input_channels
    if given is None or channels is None or is_packed(subject, layer):
        return
    if given != channels:
        yield Problem(layer.node.label, f"weights for {channels} of {given} input channels", "weights for all")


def _int4(subject: Subject) -> Iterator[Problem]:
    for layer in subject.flow.layers:
        if not is_4_bit(subject, layer):
            continue
        node = layer.node
        yield Problem(node.label, "4-bit integers", "8 bits: no release of ATC is known to read 4", "warning")
        if layer.group != 1:
            yield Problem(node.label, f"4-bit integers in {layer.group} groups", "one group", "error")
        channels, given = layer.input_channels, given_channels(layer)
        if is_packed(subject, layer) and None not in (channels, given) and given != 2 * (channels or 0):
            found = f"{channels} bytes for {given} input channels"
            yield Problem(node.label, found, "an even number of channels, two in each byte", "error")


def _int16(subject: Subject) -> Iterator[Problem]:
    for layer in subject.flow.layers:
        if not any(width(quant) == 16 for quant in layer.quants):
            continue
        node, axes = layer.node, len(layer.weight_dims) - 2
        fits = node.op in ("Conv", "ConvTranspose") and axes in (1, 2)
        if not fits and not (node.op == "Gemm" and layer.bias() is not None):
            expected = "1-D and 2-D Conv and ConvTranspose, and Gemm with a bias"
            yield Problem(node.label, f"16-bit activations of {node.op}", expected)


def _recurrent(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("LSTM", "GRU"):
        integers = any(v is not None and v.elem_type == TensorProto.INT8 for v in (node.input(1), node.input(2)))
        if integers or any(subject.flow.quantized(value) is not None for value in node.inputs):
            expected = " or ".join(WINDOW_CACHE)
            yield Problem(node.label, f"{node.op} over integers", expected)


LAYER_RULES = (
    Rule(
        number=19,
        severities=("error",),
        sentence="Weights of quantized layers are INT8 constants that no float operator reads.",
        source="AMCT, FIX",
        check=_weights,
    ),
    Rule(
        number=20,
        severities=("error",),
        sentence="Biases of quantized layers are INT32 constants of one value per output, or absent.",
        source="AMCT, FIX",
        check=_biases,
    ),
    Rule(
        number=24,
        severities=("error",),
        sentence="Quantized Gemm has transA 0, transB 0, alpha 1 and beta 1.",
        source="AMCT, OPSNN plugin",
        check=_gemm,
    ),
    Rule(
        number=25,
        severities=("error", "warning"),
        sentence="Quantized MatMul has a constant weight of two axes; its bias is the second operand of the only node "
        "that reads it.",
        source="AMCT, MSLIM, ATC guide",
        check=_matmul,
    ),
    Rule(
        number=26,
        severities=("error",),
        sentence="Quantized Conv has two or three inputs and attributes that fit its weight; in 3-D no dilation in "
        "depth, and auto_pad NOTSET or VALID.",
        source="OPSNN plugin, ATC guide",
        check=_conv,
    ),
    Rule(
        number=27,
        severities=("error", "warning"),
        sentence="Quantized ConvTranspose has dilation 1, at most two spatial axes, and offset 0.",
        source="ATC guide",
        check=_conv_transpose,
    ),
    Rule(
        number=28,
        severities=("warning",),
        sentence="Quantized AveragePool is one that ATC leaves quantized: not global, not too large.",
        source="FE21, ATC guide",
        check=_pools,
    ),
    Rule(
        number=29,
        severities=("warning",),
        sentence="Quantized Conv has more than 16 input channels.",
        source="FE21, DUMP",
        check=_few_channels,
    ),
    Rule(
        number=31,
        severities=("error",),
        sentence="The channels of a grouped layer divide evenly, and the weight has all of them.",
        source="ONNX",
        check=_groups,
    ),
    Rule(
        number=32,
        severities=("warning", "error"),
        sentence="4-bit layers have one group and two values per byte along the input channels; none is known to be "
        "read by ATC.",
        source="AMCT",
        check=_int4,
    ),
    Rule(
        number=33,
        severities=("error",),
        sentence="16-bit activations stand in front of 1-D and 2-D Conv and ConvTranspose, and Gemm with a bias.",
        source="AMCT",
        check=_int16,
    ),
    Rule(
        number=34,
        severities=("error",),
        sentence="Quantized LSTM and GRU are window-cache operators.",
        source="AMCT",
        check=_recurrent,
    ),
)
