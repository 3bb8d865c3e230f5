"""What cannot be simulated: one error of ours each, which names the file and the node."""

import re

import numpy as np
import onnx
import pytest
from deploy_graphs import (
    add_node,
    network,
    node,
    old_gemm,
    set_attribute,
    set_tensor,
    tensor,
    tensor_info,
    values_of,
    volume,
)
from deploy_mutations import MUTATIONS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_verify import mistreat

from amct_onnx import ModelError, NotAvailableError
from amct_onnx.deploy.simulate import SimulatedSession, simulated


def refused(model, message, error=ModelError):
    with pytest.raises(error, match=message) as caught:
        simulated(model)
    assert str(caught.value).startswith("the model: ")
    assert "\n" not in str(caught.value)


def edited(*edits):
    model = network().model
    for edit in edits:
        edit(model)
    return model


def test_a_float_model_is_no_deploy_model(tmp_path):
    refused(network().float_model, "not a deploy model: it has no AscendDequant")
    onnx.save(network().float_model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / 'net.onnx'}: not a deploy model")):
        SimulatedSession(tmp_path / "net.onnx")


def test_what_is_no_file_or_no_model(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path, tmp_path / "none.onnx", tmp_path / "text.onnx"):
        with pytest.raises(ModelError, match=re.escape(str(path))):
            SimulatedSession(path)
    with pytest.raises(ModelError, match="the model is a int"):
        SimulatedSession(3)


SCALES = [None, 2, 0.0, -1.0, float("nan"), float("inf"), "big", [0.5]]
OFFSETS = [None, 3, 0.5, 128.0, -129.0, float("nan"), float("inf"), "none"]


@pytest.mark.parametrize("scale", SCALES)
def test_odd_scales_of_a_quant(scale):
    refused(
        edited(lambda m: set_attribute(m, "conv.quant", scale=scale)), "AscendQuant 'conv.quant' must have a .*scale"
    )


@pytest.mark.parametrize("offset", OFFSETS)
def test_odd_offsets_of_a_quant(offset):
    model = edited(lambda m: set_attribute(m, "conv.quant", offset=offset))
    refused(model, "AscendQuant 'conv.quant' must have a .*offset")


def test_a_weight_of_negative_size():
    def shrink(m):
        next(t for t in m.graph.initializer if t.name == "conv.weight").dims[0] = -5

    refused(edited(shrink), r"initializer 'conv.weight' has the impossible shape \[-5")


NOT_YET = {
    "16 bits": (lambda m: set_attribute(m, "conv.quant", dst_type="INT16"), "'conv.quant' gives INT16"),
    "4 bits": (lambda m: set_attribute(m, "conv.quant", dst_type="INT4"), "'conv.quant' gives INT4"),
    "rounding": (lambda m: set_attribute(m, "conv.quant", round_mode="Floor"), "another round_mode"),
    "roots": (lambda m: set_attribute(m, "conv.quant", sqrt_mode=1), "sqrt_mode"),
    "shifts": (
        lambda m: set_tensor(m, "fc.dequant.param", values_of(m, "fc.dequant.param") | np.uint64(1 << 32)),
        "AscendDequant 'fc.dequant' shifts its accumulator",
    ),
    "old operators": (lambda m: setattr(m.opset_import[0], "version", 10), "the model's operator set is 10"),
    "recurrent": (
        lambda m: add_node(m, "BasicLSTMInplaceFillWindowCache", "lstm", ["x"]),
        "BasicLSTMInplaceFillWindowCache 'lstm'",
    ),
    "requant": (lambda m: add_node(m, "AscendRequant", "requant", ["x"]), "AscendRequant 'requant'"),
    "two activations with offsets": (
        lambda m: node(m, "proj").input.__setitem__(1, "fc.quant.output"),
        "MatMul 'proj' of two activations is simulated where both have the offset 0",
    ),
}


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_not_simulated_yet(name):
    edit, message = NOT_YET[name]
    refused(edited(edit), message, NotAvailableError)


def constant(name, values):
    return lambda m: m.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def replaced(name, op, **attributes):
    """The node becomes another operator with the same inputs."""

    def edit(model):
        where = node(model, name)
        where.op_type = op
        del where.attribute[:]
        where.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())

    return edit


WRONG = {
    "float weight": (
        [lambda m: set_tensor(m, "conv.weight", values_of(m, "conv.weight").astype(np.float32))],
        "Conv 'conv' reads quantized values, but its weight is no int8 constant: float32",
    ),
    "float bias": (
        [lambda m: set_tensor(m, "conv.bias", values_of(m, "conv.bias").astype(np.float32))],
        "Conv 'conv' reads quantized values, but its bias is no int32 constant: float32",
    ),
    "short bias": (
        [lambda m: set_tensor(m, "conv.bias", np.zeros(3, np.int32))],
        r"the bias of Conv 'conv' has shape \[3\] for 20 outputs",
    ),
    "scales and channels": (
        [lambda m: set_tensor(m, "conv.dequant.param", values_of(m, "conv.dequant.param")[:7])],
        "AscendDequant 'conv.dequant' has 7 scales for 20 channels",
    ),
    "scale no word": (
        [lambda m: set_tensor(m, "fc.dequant.param", np.ones(1, np.float32))],
        "AscendDequant 'fc.dequant' must have a constant scale of type uint64 with one axis",
    ),
    "scale zero": (
        [lambda m: set_tensor(m, "fc.dequant.param", np.zeros(1, np.uint64))],
        "AscendDequant 'fc.dequant' must have positive, finite scales",
    ),
    "groups": ([lambda m: set_attribute(m, "conv", group=3)], "Conv 'conv' has 3 groups for a weight of shape"),
    "transB": ([lambda m: set_attribute(m, "fc", transB=1)], "Gemm 'fc' over quantized values must have transB=0"),
    "float operator": ([replaced("conv", "Sigmoid")], "Sigmoid 'conv' reads quantized values, which only Conv, "),
    "float operator behind": (
        [lambda m: node(m, "relu").input.__setitem__(0, "conv.output")],
        "Relu 'relu' reads an accumulator, which only AscendDequant",
    ),
    "no accumulator": (
        [lambda m: node(m, "conv.dequant").input.__setitem__(0, "x")],
        "AscendDequant 'conv.dequant' reads 'x', which is no accumulator",
    ),
    "twice": (
        [lambda m: node(m, "conv.dequant").input.__setitem__(0, "conv.quant.output")],
        "AscendDequant 'conv.dequant' reads 'conv.quant.output', which is no accumulator",
    ),
    "quant of integers": (
        [lambda m: node(m, "up.quant").input.__setitem__(0, "conv.quant.output")],
        "AscendQuant 'up.quant' reads quantized values",
    ),
    "other offsets": (
        [
            lambda m: set_attribute(m, "up.quant", offset=5.0),
            lambda m: add_node(m, "Concat", "join", ["conv.quant.output", "up.quant.output"], axis=1),
        ],
        "Concat 'join' joins tensors that are quantized with different offsets",
    ),
    "float and integers": (
        [lambda m: add_node(m, "Concat", "join", ["conv.quant.output", "x"], axis=1)],
        "Concat 'join' joins quantized values with others",
    ),
    "as a shape": (
        [lambda m: add_node(m, "Reshape", "shaped", ["x", "conv.quant.output"])],
        "Reshape 'shaped' joins quantized values with others, or takes them for a shape",
    ),
    "added float": (
        [constant("half", np.float32(0.5)), lambda m: add_node(m, "Add", "more", ["proj.output", "half"])],
        "Add 'more' adds something else than an int32 constant",
    ),
    "channels moved": (
        [
            lambda m: node(m, "conv.dequant").input.__setitem__(
                0, add_node(m, "Transpose", "turn", ["conv.output"], perm=[0, 2, 3, 1])
            )
        ],
        "AscendDequant 'conv.dequant' has one scale per channel, but the channels were moved",
    ),
    "anti-quant": (
        [lambda m: set_attribute(m, "side.anti_quant", offset=4.0)],
        "AscendAntiQuant 'side.anti_quant' does not undo the AscendQuant before it",
    ),
    "output": (
        [lambda m: m.graph.output.append(tensor_info("conv.quant.output", None, TensorProto.INT8))],
        "output 'conv.quant.output' of the model holds integers",
    ),
    "pad value": (
        [
            constant("ends", np.zeros(8, np.int64)),
            constant("fill", np.float32(300)),
            lambda m: add_node(m, "Pad", "padded", ["conv.quant.output", "ends", "fill"]),
        ],
        "Pad 'padded' of quantized values must have a constant value",
    ),
    "no window": ([lambda m: set_attribute(m, "pool", kernel_shape=None)], "AveragePool 'pool' .* kernel_shape"),
    "two inputs": (
        [lambda m: node(m, "conv.quant").input.append("x")],
        "AscendQuant 'conv.quant' must have 1 inputs and 1 output, found 2 and 1",
    ),
    "circle": ([lambda m: node(m, "conv.quant").input.__setitem__(0, "relu.output")], "circle"),
    "dangling": (
        [lambda m: node(m, "conv.quant").input.__setitem__(0, "nothing")],
        "'conv.quant' reads tensor 'nothing', which nothing produces",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_deploy_model(name):
    edits, message = WRONG[name]
    refused(edited(*edits), message)


def test_integers_that_a_body_reads_are_refused():
    body = helper.make_graph(
        [helper.make_node("Relu", ["conv.quant.output"], ["t"], name="inner")], "b", [], [tensor_info("t", None)]
    )
    model = network().model
    model.graph.input.append(tensor_info("q", [], TensorProto.BOOL))
    model.graph.node.append(helper.make_node("If", ["q"], ["i"], name="if", then_branch=body, else_branch=body))
    refused(model, "If 'if' reads quantized values")


def test_layers_in_bodies_are_not_simulated_yet():
    d = network()
    body = helper.make_graph([], "b", [], [tensor_info("proj.dequant.output", None)])
    body.node.extend(d.model.graph.node)
    body.initializer.extend(d.model.graph.initializer)
    d.model.graph.input.append(tensor_info("q", [], TensorProto.BOOL))
    d.model.graph.node.append(helper.make_node("If", ["q"], ["i"], name="if", then_branch=body, else_branch=body))
    refused(d.model, "AscendQuant 'conv.quant' inside If 'if': bodies are not simulated yet", NotAvailableError)


def test_what_onnxruntime_does_not_take_is_an_error_that_names_the_file(tmp_path):
    model = edited(lambda m: set_attribute(m, "conv", kernel_shape=[5, 5]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(
        ModelError, match=re.escape(f"onnxruntime does not accept {tmp_path / 'net.onnx'} as it is sim")
    ):
        SimulatedSession(tmp_path / "net.onnx")


def test_names_that_a_terminal_obeys_are_shown_escaped():
    model = edited(lambda m: set_attribute(m, "fc.quant", scale=0.0))
    node(model, "fc.quant").name = "\x1b[31mred"
    with pytest.raises(ModelError, match=re.escape(r"AscendQuant '\\x1b[31mred' must have")):
        simulated(model)


def opens_or_names(model, name):
    """Whether the model can be simulated, or is refused by an error that names it."""
    try:
        SimulatedSession(model)
    except (ModelError, NotAvailableError) as error:
        return name in str(error)
    return True


BASES = [network().model, old_gemm(), volume().model]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    base=st.sampled_from(range(len(BASES))),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    length=st.none() | st.integers(0, 2**14),
)
def test_damaged_files_open_or_are_one_error_that_names_the_file(tmp_path, base, edits, length):
    content = bytearray(BASES[base].SerializeToString())
    for place, value in edits:
        content[place % len(content)] = value
    path = tmp_path / "net.onnx"
    path.write_bytes(bytes(content if length is None else content[: length % len(content)]))
    assert opens_or_names(path, str(path))


@pytest.mark.parametrize("seed", range(10))
def test_mistreated_models_open_or_are_one_error(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        case = MUTATIONS[rng.integers(len(MUTATIONS))]
        d = case.base()
        case.edit(d)
        for _ in range(rng.integers(1, 6)):
            mistreat(d.model, rng)
        assert opens_or_names(d.model, "the model")


def test_a_weight_that_no_layer_reads_is_left_alone():
    model = edited(constant("spare", np.ones((3, 3), np.int8)))
    assert tensor(model, "spare").name not in {t.name for t in simulated(model).proto.graph.initializer}
