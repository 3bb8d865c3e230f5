"""For every rule the ways to break it, each an edit of a deploy model that is good otherwise."""

import dataclasses
from collections.abc import Callable

import numpy as np
from deploy_graphs import (
    CHANNELS,
    Deploy,
    add_node,
    external,
    make_input,
    network,
    node,
    set_attribute,
    set_tensor,
    tensor,
    tensor_info,
    values_of,
    volume,
)
from onnx import TensorProto, helper, numpy_helper


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A way to break one rule. `beside`: give record and float model too, without which it does not show."""

    rule: int
    name: str
    edit: Callable[[Deploy], None]
    severity: str
    base: Callable[[], Deploy]
    beside: bool


MUTATIONS: list[Mutation] = []


def breaks(rule, severity="error", *, base=network, beside=False):
    def enter(edit):
        MUTATIONS.append(Mutation(rule, edit.__name__, edit, severity, base, beside))
        return edit

    return enter


def sets(rule, where, severity="error", *, base=network, **values):
    """Enter a mutation that replaces attributes of one node."""
    shown = ", ".join(f"{key}={value}" for key, value in values.items())
    edit = lambda d: set_attribute(d.model, where, **values)  # noqa: E731
    MUTATIONS.append(Mutation(rule, f"{where}: {shown}", edit, severity, base, False))


# 1 to 3: the container


@breaks(1)
def second_operator_set(d):
    d.model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


@breaks(1)
def no_operator_set(d):
    del d.model.opset_import[:]


@breaks(1)
def too_old(d):
    d.model.opset_import[0].version = 10


@breaks(1)
def too_new(d):
    d.model.opset_import[0].version = 19


@breaks(1, "warning")
def rather_new(d):
    d.model.opset_import[0].version = 14


@breaks(2)
def other_domain(d):
    node(d.model, "conv.quant").domain = "ascend"


@breaks(2)
def no_name(d):
    node(d.model, "conv.dequant").name = ""


@breaks(2)
def name_of_another(d):
    node(d.model, "relu").name = "conv.quant"


@breaks(3)
def unknown_operator(d):
    node(d.model, "relu").op_type = "Rleu"


@breaks(3)
def operator_of_a_later_set(d):
    node(d.model, "relu").op_type = "Gelu"


@breaks(3)
def operator_of_another_domain(d):
    node(d.model, "relu").domain = "com.microsoft"


@breaks(3)
def quantize_linear(d):
    node(d.model, "relu").op_type = "QuantizeLinear"


@breaks(3)
def weight_quant(d):
    node(d.model, "relu").op_type = "AscendWeightQuant"


# 4 to 10: AscendQuant

for name in ("scale", "offset"):
    sets(4, "conv.quant", **{name: None})
    sets(4, "conv.quant", **{name: 3})
    sets(4, "conv.quant", **{name: [3.0]})


@breaks(4)
def quant_of_two(d):
    node(d.model, "conv.quant").input.append("x")


@breaks(4)
def quant_gives_two(d):
    node(d.model, "conv.quant").output.append("more")


for scale in (0.0, -1.0, float("nan"), float("inf"), 1e8, 1e-8):
    sets(5, "conv.quant", scale=scale)
for offset in (3.5, 128.0, -129.0, float("nan"), float("inf")):
    sets(6, "conv.quant", offset=offset)
sets(6, "conv.quant", offset=40000.0, dst_type="INT16")
sets(6, "conv.quant", base=volume, offset=1.0)
sets(7, "conv.quant", dst_type="INT9")
sets(7, "conv.quant", dst_type=2)
sets(7, "conv.quant", dst_type=None, quant_bit=4)
sets(7, "conv.quant", quant_bit="8")
sets(8, "conv.quant", "warning", round_mode="Floor")
sets(8, "conv.quant", "warning", round_mode=1)
sets(8, "conv.quant", "warning", sqrt_mode=1)
sets(9, "conv.quant", "warning", scale=2.0**-15)
sets(9, "conv.quant", "warning", scale=70000.0)


@breaks(10, "warning")
def float_operator_reads_integers(d):
    add_node(d.model, "Sigmoid", "stray", ["conv.quant.output"])


@breaks(10, "warning")
def float_operator_behind_transpose(d):
    moved = add_node(d.model, "Transpose", "moved", ["conv.quant.output"])
    add_node(d.model, "Sigmoid", "stray", [moved])


@breaks(10, "warning")
def integers_as_shape(d):
    add_node(d.model, "Reshape", "stray", ["x", "conv.quant.output"])


# 11 to 17: AscendDequant


@breaks(11)
def scale_is_an_input(d):
    make_input(d.model, "conv.dequant.param", [CHANNELS], TensorProto.UINT64)


@breaks(11)
def dequant_of_three(d):
    node(d.model, "conv.dequant").input.append("x")


@breaks(11)
def dequant_without_scale(d):
    del node(d.model, "conv.dequant").input[1]


@breaks(12)
def scale_of_float(d):
    set_tensor(d.model, "fc.dequant.param", np.ones(1, np.float32))


@breaks(12)
def scale_of_two_axes(d):
    tensor(d.model, "conv.dequant.param").dims[:] = [1, CHANNELS]


@breaks(12)
def scalar_scale(d):
    tensor(d.model, "fc.dequant.param").ClearField("dims")


@breaks(12)
def too_few_scales(d):
    set_tensor(d.model, "conv.dequant.param", values_of(d.model, "conv.dequant.param")[:7])


@breaks(12)
def no_scales(d):
    set_tensor(d.model, "conv.dequant.param", np.empty(0, np.uint64))


def change_word(d, layer, change):
    words = values_of(d.model, f"{layer}.dequant.param")
    words[-1] = change(int(words[-1]))
    set_tensor(d.model, f"{layer}.dequant.param", words)


@breaks(13)
def shift_in_one_word(d):
    change_word(d, "conv", lambda word: word | 3 << 32)


@breaks(13)
def weight_offset_in_one_word(d):
    change_word(d, "conv", lambda word: word | 1 << 40)


for bits, what in {0: "zero", 1: "denormal", 0x7F800000: "inf", 0x7FC00000: "nan", 0xBF800000: "negative"}.items():

    def word(d, bits=bits):
        change_word(d, "conv", lambda _: bits)

    word.__name__ = f"scale_is_{what}"
    breaks(14)(word)


@breaks(15, "warning")
def gemm_per_channel(d):
    words = values_of(d.model, "fc.dequant.param")
    set_tensor(d.model, "fc.dequant.param", np.repeat(words, CHANNELS))


sets(16, "conv.dequant", dtype=0.0)
sets(16, "conv.dequant", relu_flag="0")
sets(16, "conv.dequant", dtype=2)
sets(16, "conv.dequant", sqrt_mode=1)
sets(16, "conv.dequant", "warning", dtype=1)
sets(16, "conv.dequant", "warning", quant_bit=8)
sets(17, "conv.dequant", "warning", relu_flag=1)


# 18: the ways of integers


@breaks(18)
def float_input(d):
    node(d.model, "conv").input[0] = "x"


@breaks(18)
def int32_output(d):
    d.model.graph.output.append(tensor_info("conv.output", None, TensorProto.INT32))


@breaks(18)
def int32_into_a_float_operator(d):
    add_node(d.model, "Relu", "stray", ["conv.output"])


@breaks(18)
def int32_into_nothing(d):
    node(d.model, "relu").input[0] = "x"
    d.model.graph.node.remove(node(d.model, "conv.dequant"))


@breaks(18)
def dequant_of_float(d):
    other = add_node(d.model, "Cast", "stray", ["x"], to=TensorProto.INT32)
    add_node(d.model, "AscendDequant", "stray.dequant", [other, "fc.dequant.param"])


@breaks(18)
def add_of_two_results(d):
    joined = add_node(d.model, "Add", "sum", ["conv.output", "conv.output"])
    node(d.model, "conv.dequant").input[0] = joined


@breaks(18)
def joined_with_other_scales(d):
    other = add_node(d.model, "AscendQuant", "other.quant", ["x"], scale=7.0, offset=3.0)
    joined = add_node(d.model, "Concat", "join", ["conv.quant.output", other], axis=2)
    node(d.model, "conv").input[0] = joined


@breaks(18)
def joined_with_float(d):
    joined = add_node(d.model, "Concat", "join", ["conv.quant.output", "x"], axis=2)
    node(d.model, "conv").input[0] = joined


# 19 to 23: weights, biases, numbers


@breaks(19)
def float_weight(d):
    set_tensor(d.model, "conv.weight", values_of(d.model, "conv.weight").astype(np.float32))


@breaks(19)
def computed_weight(d):
    make_input(d.model, "fc.weight", [80, CHANNELS])


@breaks(19)
def weight_out_of_range(d):
    where = tensor(d.model, "conv.weight")
    values = values_of(d.model, "conv.weight").ravel().tolist()
    where.ClearField("raw_data")
    where.int32_data.extend([*values[:-1], 300])


@breaks(19)
def weight_of_six_axes(d):
    tensor(d.model, "up.weight").dims.extend([1, 1])


@breaks(19)
def weight_read_as_float(d):
    add_node(d.model, "Cast", "stray", ["conv.weight"], to=TensorProto.FLOAT)


@breaks(19)
def weight_is_an_output(d):
    d.model.graph.output.append(tensor_info("conv.weight", None, TensorProto.INT8))


@breaks(20)
def float_bias(d):
    set_tensor(d.model, "conv.bias", np.ones(CHANNELS, np.float32))


@breaks(20)
def float_bias_of_matmul(d):
    set_tensor(d.model, "proj.bias", np.ones(24, np.float32))


@breaks(20)
def short_bias(d):
    set_tensor(d.model, "conv.bias", np.ones(CHANNELS - 1, np.int32))


@breaks(20)
def computed_bias(d):
    make_input(d.model, "conv.bias", [CHANNELS], TensorProto.INT32)


def change_bias(d, layer, change):
    set_tensor(d.model, f"{layer}.bias", change(values_of(d.model, f"{layer}.bias")).astype(np.int32))


@breaks(21, "warning", beside=True)
def bias_of_matmul_is_off(d):
    change_bias(d, "proj", lambda bias: bias + 100)


@breaks(21, "warning", beside=True)
def bias_is_truncated(d):
    words = values_of(d.model, "conv.dequant.param").astype(np.uint32).view(np.float32)
    floats = values_of(d.float_model, "conv.bias") / words
    assert (np.trunc(floats) != np.round(floats)).any()
    change_bias(d, "conv", lambda _: np.trunc(floats))


@breaks(22, "warning", beside=True)
def bias_holds_the_offset_term(d):
    sums = values_of(d.model, "conv.weight").astype(np.int64).sum(axis=(1, 2, 3))
    change_bias(d, "conv", lambda bias: bias - 3 * sums)


@breaks(22, "warning")
def bias_is_the_offset_term_of_gemm(d):
    sums = values_of(d.model, "fc.weight").astype(np.int64).sum(axis=0)
    change_bias(d, "fc", lambda _: 128 * sums)


@breaks(22, "warning", beside=True)
def bias_of_matmul_holds_the_offset_term(d):
    sums = values_of(d.model, "proj.weight").astype(np.int64).sum(axis=0)
    change_bias(d, "proj", lambda bias: bias - 4 * sums)


@breaks(23)
def pool_on_another_scale(d):
    change_word(d, "pool", lambda word: word + 1000)


@breaks(23, beside=True)
def conv_on_another_scale(d):
    change_word(d, "conv", lambda word: word + 20)


@breaks(23, beside=True)
def quant_on_another_scale(d):
    set_attribute(d.model, "conv.quant", scale=19.9)


@breaks(23, beside=True)
def quant_with_another_offset(d):
    set_attribute(d.model, "proj.quant", offset=-5.0)


@breaks(23, beside=True)
def record_of_other_channels(d):
    d.record["conv"] = dataclasses.replace(d.record["conv"], scale_w=(0.1, 0.1), offset_w=(0, 0))


# 24 to 34: layers

sets(24, "fc", transA=1)
sets(24, "fc", alpha=0.5)
sets(24, "fc", beta=2.0)
sets(24, "fc", beta=1)


@breaks(24)
def transposed_weight(d):
    set_attribute(d.model, "fc", transB=1)
    set_tensor(d.model, "fc.weight", values_of(d.model, "fc.weight").T.copy())


@breaks(25)
def weight_of_three_axes(d):
    tensor(d.model, "proj.weight").dims.insert(0, 1)


@breaks(25)
def computed_weight_of_matmul(d):
    make_input(d.model, "proj.weight", [CHANNELS, 24])


@breaks(25)
def bias_comes_first(d):
    add = node(d.model, "proj.add")
    add.input[:] = [add.input[1], add.input[0]]


@breaks(25)
def bias_of_two_axes(d):
    tensor(d.model, "proj.bias").dims[:] = [1, 24]


@breaks(25)
def result_read_beside_the_bias(d):
    joined = add_node(d.model, "Concat", "join", ["proj.add.output", "proj.output"], axis=0)
    node(d.model, "proj.dequant").input[0] = joined


def two_activations(d, offset):
    make_input(d.model, "proj.weight", [CHANNELS, 24])
    quant = add_node(d.model, "AscendQuant", "second.quant", ["proj.weight"], scale=7.0, offset=offset)
    node(d.model, "proj").input[1] = quant


@breaks(25)
def two_activations_with_offset(d):
    two_activations(d, 0.0)


@breaks(25, "warning")
def two_symmetric_activations(d):
    set_attribute(d.model, "proj.quant", offset=0.0)
    two_activations(d, 0.0)


sets(26, "conv", kernel_shape=None, pads=None)
sets(26, "conv", kernel_shape=[5, 5])
sets(26, "conv", strides=[1, 1, 1])
sets(26, "conv", pads=[1, 1])
sets(26, "conv", dilations=1)
sets(26, "conv", base=volume, dilations=[2, 1, 1])
sets(26, "conv", base=volume, auto_pad="SAME_UPPER")


@breaks(26)
def conv_of_four(d):
    node(d.model, "conv").input.append("x")


sets(27, "up", dilations=[2, 2])
sets(27, "up.quant", "warning", offset=-3.0)


@breaks(27, "warning")
def transposed_volume(d):
    tensor(d.model, "up.weight").dims.append(1)


sets(28, "pool", "warning", kernel_shape=[8, 8])
sets(28, "pool", "warning", strides=[64, 64])
sets(28, "pool", "warning", kernel_shape=[20, 20])
sets(28, "pool", "warning", strides=[4, 5])


@breaks(28, "warning")
def global_pool(d):
    node(d.model, "pool").op_type = "GlobalAveragePool"


@breaks(29, "warning")
def sixteen_channels(d):
    d.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    set_tensor(d.model, "conv.weight", values_of(d.model, "conv.weight")[:, :16].copy())


@breaks(30, "warning")
def pad_with_zero(d):
    d.model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.int64), "ends"))
    node(d.model, "conv").input[0] = add_node(d.model, "Pad", "pad", ["conv.quant.output", "ends"])


@breaks(30, "warning")
def pad_with_another_value(d):
    for name, values in {"ends": np.ones(8, np.int64), "fill": np.int8(4)}.items():
        d.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    node(d.model, "conv").input[0] = add_node(d.model, "Pad", "pad", ["conv.quant.output", "ends", "fill"])


sets(31, "conv", group=3)
sets(31, "conv", group=0)
sets(31, "conv", group=1.0)


@breaks(31)
def missing_channels(d):
    set_tensor(d.model, "conv.weight", values_of(d.model, "conv.weight")[:, :18].copy())


def pack(d, *, group=1, width=CHANNELS // 2):
    set_attribute(d.model, "conv.quant", dst_type="INT4")
    set_attribute(d.model, "conv", group=group)
    set_tensor(d.model, "conv.weight", values_of(d.model, "conv.weight")[:, : width // group].copy())


@breaks(32, "warning")
def four_bits(d):
    pack(d)


@breaks(32)
def four_bits_in_groups(d):
    pack(d, group=2)


@breaks(32)
def four_bits_of_odd_channels(d):
    pack(d, width=9)


sets(33, "proj.quant", dst_type="INT16")
sets(33, "pool.quant", dst_type="INT16")
sets(33, "conv.quant", base=volume, dst_type="INT16")


@breaks(34)
def lstm_over_integer_weights(d):
    for name in ("W", "R"):
        d.model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 16, 4), np.int8), name))
    d.model.graph.input.append(tensor_info("words", [5, 1, 4]))
    add_node(d.model, "LSTM", "lstm", ["words", "W", "R"], hidden_size=4)


@breaks(34)
def gru_over_integers(d):
    add_node(d.model, "GRU", "gru", ["side.quant.output", "x", "x"], hidden_size=4)


# 35 to 37: balance factors, duplicates, AscendAntiQuant


@breaks(35)
def factor_of_zero(d):
    values = values_of(d.model, "fc.tensor_balance_factor")
    values[0, 5] = 0
    set_tensor(d.model, "fc.tensor_balance_factor", values)


@breaks(35)
def factors_of_one_axis(d):
    set_tensor(d.model, "fc.tensor_balance_factor", np.full(80, 0.5, np.float32))


@breaks(35)
def factors_of_double(d):
    set_tensor(d.model, "fc.tensor_balance_factor", np.full((1, 80), 0.5))


@breaks(35)
def computed_factors(d):
    make_input(d.model, "fc.tensor_balance_factor", [1, 80])


@breaks(36, "warning")
def quantized_twice(d):
    twin = add_node(d.model, "AscendQuant", "twin.quant", ["x"])
    node(d.model, "twin.quant").attribute.extend(node(d.model, "conv.quant").attribute)
    d.model.graph.output.append(tensor_info(twin, None, TensorProto.INT8))


sets(37, "side.anti_quant", "warning", scale=10.0)
sets(37, "side.anti_quant", "warning", offset=-5.0)
sets(37, "side.anti_quant", "warning", scale=None)
sets(37, "side.anti_quant", "warning", offset=5)


# 38 to 42: stored data, size, inputs, names


def spare(d, values=None, **fields):
    """A further initializer that nothing reads."""
    values = np.ones(4, np.float32) if values is None else values
    made = numpy_helper.from_array(values, "spare")
    for key, value in fields.items():
        if key == "dims":
            made.dims[:] = value
        else:
            setattr(made, key, value)
    d.model.graph.initializer.append(made)
    return d.model.graph.initializer[-1]


@breaks(38)
def truncated_weight(d):
    where = tensor(d.model, "conv.weight")
    where.raw_data = where.raw_data[:-1]


@breaks(38)
def no_data(d):
    spare(d).ClearField("raw_data")


@breaks(38)
def data_twice(d):
    spare(d).float_data.extend([1.0] * 4)


for case, fields in {
    "negative_axis": {"dims": [-1, 4]},
    "absurd_axes": {"dims": [2**60, 2**60]},
    "many_axes": {"dims": [1] * 1000},
    "bfloat16": {"data_type": TensorProto.BFLOAT16, "raw_data": b"12345678"},
    "unknown_type": {"data_type": 77},
    "no_type": {"data_type": 0},
}.items():

    def damaged(d, fields=fields):
        spare(d, **fields)

    damaged.__name__ = case
    breaks(38)(damaged)


@breaks(38)
def uint64_elsewhere(d):
    spare(d, np.ones(4, np.uint64))
    add_node(d.model, "Identity", "stray", ["spare"])


@breaks(38)
def absurd_constant_node(d):
    value = TensorProto(data_type=1, dims=[1 << 62])
    d.model.graph.node.append(helper.make_node("Constant", [], ["constant"], name="constant", value=value))


for location in ("", "../w", "a/../../w", "/etc/hostname", "\\\\host\\w", "C:\\w", "..\\w", "a\0b"):

    def moved_out(d, location=location):
        external(d.model, "conv.weight", location=location)

    moved_out.__name__ = f"location {location!r}"
    breaks(39)(moved_out)

for entries in ({"offset": "-1"}, {"length": "1e3"}, {"length": "7"}, {"offset": "9" * 50}, {"length": ""}):

    def misplaced(d, entries=entries):
        external(d.model, "conv.weight", location="w", **entries)

    misplaced.__name__ = f"external {entries}"
    breaks(39)(misplaced)


@breaks(41, "warning")
def free_batch(d):
    d.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


@breaks(41, "warning")
def batch_of_minus_one(d):
    d.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1


@breaks(41, "warning")
def no_shape(d):
    d.model.graph.input[0].type.tensor_type.ClearField("shape")


@breaks(42, "warning")
def other_name_of_quant(d):
    node(d.model, "conv.quant").name = "conv_quant0"


@breaks(42, "warning")
def other_name_of_dequant(d):
    node(d.model, "conv.dequant").name = "dequant_0"
