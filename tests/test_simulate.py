"""Simulated deploy models: equal to plain integers in numpy, bit for bit, for every profile and every form."""

import numpy as np
import onnx
import pytest
from deploy_graphs import network, old_gemm, tensor_info
from graphs import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_deploy import run_deploy
from onnx import helper, numpy_helper

from amct_onnx import ConfigError, NotAvailableError
from amct_onnx.deploy import integer_layers
from amct_onnx.deploy.profiles import PROFILES
from amct_onnx.deploy.simulate import SimulatedSession, simulated

NAMES = list(PROFILES)
SOME = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Net:
    """A deploy model in the making."""

    def __init__(self, seed=0, dtype=np.float32):
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes, self.constants = [], []

    def constant(self, values):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, op, *inputs, outputs=1, **attributes):
        name = f"{op}_{len(self.nodes)}"
        made = [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, [i or "" for i in inputs], made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def quant(self, x, scale, offset=0, **attributes):
        return self.node("AscendQuant", x, scale=float(np.float32(scale)), offset=float(offset), **attributes)

    def dequant(self, x, scales, **attributes):
        words = np.atleast_1d(np.float32(scales)).view(np.uint32).astype(np.uint64)
        return self.node("AscendDequant", x, self.constant(words), dtype=int(self.dtype == np.float16), **attributes)

    def finish(self, shape, *outputs, opset=13):
        ends = [tensor_info("x", shape, self.elem_type)], [tensor_info(o, None, self.elem_type) for o in outputs]
        made = helper.make_model(
            helper.make_graph(self.nodes, "g", *ends, self.constants), opset_imports=[helper.make_opsetid("", opset)]
        )
        made.ir_version = 8
        return made


def conv(net, q, shape, *, weight=None, bias=None, **attributes):
    """A Conv, 2-D unless the weight is of another rank."""
    values = net.rng.integers(-128, 128, shape).astype(np.int8) if weight is None else np.full(shape, weight, np.int8)
    inputs = [q, net.constant(values)]
    inputs += [] if bias is None else [net.constant(np.broadcast_to(np.int32(bias), shape[:1]))]
    return net.node("Conv", *inputs, **attributes)


def single(shape=(1, 2, 4, 4), weight=(3, 2, 3, 3), *, scale=20.0, offset=3, deq=0.01, dtype=np.float32, **options):
    """A model of one Conv."""
    net = Net(0, dtype)
    return net.finish(shape, net.dequant(conv(net, net.quant("x", scale, offset), weight, **options), deq))


def feed_for(model, seed=0, spread=5.0):
    value = model.graph.input[0].type.tensor_type
    shape = [d.dim_value for d in value.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(value.elem_type)
    x = np.random.default_rng(seed).normal(size=shape) * spread
    return {"x": x.astype(dtype)}


def assert_equal(model, feed, profiles=NAMES, *, in_float=None):
    """The same bits as numpy, with onnxruntime's optimizations and without; `in_float`: how layers are computed."""
    for profile in profiles:
        expected = run_deploy(model, feed, profile)
        with pytest.MonkeyPatch.context() as patch:
            if in_float is not None:
                patch.setattr(integer_layers, "_is_exact", lambda largest: in_float)
            made = simulated(model, profile).whole()
        for optimize in (True, False):
            found = run(made, feed, optimize=optimize)
            for name, values in expected.items():
                assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), (profile, optimize)
                np.testing.assert_array_equal(found[name], values, err_msg=f"{profile}, optimized {optimize}")


# Random layers


def integers(draw, rng, shape, kinds=("random", "random", "small", "lowest", "highest")):
    kind = draw(st.sampled_from(kinds))
    fills = {"lowest": -128, "highest": 127}
    if kind in fills:
        return np.full(shape, fills[kind], np.int8)
    return rng.integers(*((-128, 128) if kind == "random" else (-2, 3)), shape).astype(np.int8)


def bias_of(draw, rng, channels):
    kind = draw(st.sampled_from(["none", "random", "large", "limits"]))
    if kind == "none":
        return None
    if kind == "limits":
        return rng.choice([-(2**31), 2**31 - 1, 2**31 - 1000, 2**24 + 1, -(2**24) - 1], channels).astype(np.int32)
    return rng.integers(*((-5000, 5000) if kind == "random" else (-(2**27), 2**27)), channels).astype(np.int32)


def scales_of(draw, rng, channels):
    """Dequantization scales: one, or one for each channel; of usual size, or too small for a float16."""
    size = channels if draw(st.booleans()) else 1
    low, high = draw(st.sampled_from([(-6, -1), (-12, -7), (-3, 1)]))
    return (10.0 ** rng.uniform(low, high, size)).astype(np.float32)


def add_convolution(draw, net, x, axes, channels, size):
    """A Conv, or a ConvTranspose; returns accumulator, channels and spatial size behind it."""
    rng = net.rng
    transposed = axes < 3 and draw(st.integers(0, 3)) == 0
    group = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    per_group = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, min(3, size))) for _ in range(axes)]
    strides = [draw(st.integers(1, 2)) for _ in range(axes)]
    attributes = {"group": group, "strides": strides}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    mode = draw(st.sampled_from(["pads", "pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if transposed and mode.startswith("SAME"):
        mode = "pads"  # onnxruntime and the standard do not agree about these
    if mode == "pads":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    elif mode != "none":
        attributes["auto_pad"] = mode
    out = per_group * group
    shape = (channels, per_group, *kernel) if transposed else (out, channels // group, *kernel)
    if transposed:
        if draw(st.booleans()):
            attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    elif not mode.startswith("SAME") and size >= 5 and draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(axes)]
    weight = net.constant(integers(draw, rng, shape))
    bias = bias_of(draw, rng, out)
    inputs = [x, weight] if bias is None else [x, weight, net.constant(bias)]
    return net.node("ConvTranspose" if transposed else "Conv", *inputs, **attributes), out


def add_pool(draw, net, x, axes, size):
    kernel = [draw(st.integers(1, min(3, size))) for _ in range(axes)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 2)) for _ in range(axes)],
        "count_include_pad": draw(st.integers(0, 1)),
    }
    mode = draw(st.sampled_from(["pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID", "ceil"]))
    if mode == "ceil":
        attributes["ceil_mode"] = 1
        attributes["count_include_pad"] = 0
    if mode in ("pads", "ceil"):
        attributes["pads"] = [draw(st.integers(0, k // 2)) for k in (*kernel, *kernel)]
    elif mode != "none":
        attributes["auto_pad"] = mode
        attributes["strides"] = [min(k, s) for k, s in zip(kernel, attributes["strides"], strict=True)]
    return net.node("AveragePool", x, **attributes)


def moved(draw, net, x, axes, channels):
    """Something between AscendQuant and the layer; returns it and its channels."""
    kind = draw(
        st.sampled_from(["nothing"] * 3 + ["Pad", "Concat", "Transpose", "Reshape", "Split", "MaxPool", "Identity"])
    )
    if kind == "Pad":
        pads = net.constant(np.array([0, 0, *[1] * axes] * 2))
        value = [] if draw(st.booleans()) else [net.constant(np.int8(draw(st.integers(-128, 127))))]
        return net.node("Pad", x, pads, *value), channels
    if kind == "Concat":
        return net.node("Concat", x, x, axis=1), 2 * channels
    if kind == "Transpose":
        order = [0, 1, *range(axes + 1, 1, -1)]
        return net.node("Transpose", x, perm=order), channels
    if kind == "Reshape" and channels % 2 == 0:
        halved = net.node("Reshape", x, net.constant(np.array([0, 2, -1])))
        return halved, 2
    if kind == "Split" and channels % 2 == 0:
        return net.node("Split", x, outputs=2, axis=1)[draw(st.integers(0, 1))], channels // 2
    if kind == "MaxPool":
        return net.node("MaxPool", x, kernel_shape=[2] * axes, pads=[1] * 2 * axes), channels
    return (net.node("Identity", x) if kind == "Identity" else x), channels


@st.composite
def convolutional(draw):
    """One to three layers over images, signals or volumes, with the extremes of weights, biases and scales."""
    net = Net(draw(st.integers(0, 2**16)), draw(st.sampled_from([np.float32, np.float32, np.float16])))
    axes, channels, size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4])), draw(st.integers(4, 7))
    shape = [draw(st.integers(1, 2)), channels, *[size] * axes]
    x, outputs = "x", []
    for _ in range(draw(st.integers(1, 3))):
        offset = draw(st.sampled_from([0, -128, 127, 3, -77]))
        q = net.quant(x, 10.0 ** net.rng.uniform(-2, 2), offset)
        q, inner = moved(draw, net, q, axes, channels)
        now = 1 if inner != channels and inner == 2 and net.nodes[-1].op_type == "Reshape" else axes
        if (
            draw(st.integers(0, 4)) == 0 and net.nodes[-1].op_type != "Pad"
        ):  # which onnxruntime would fold, not always well
            acc, out = add_pool(draw, net, q, now, 2), inner
            scales = scales_of(draw, net.rng, 1)
        else:
            acc, out = add_convolution(draw, net, q, now, inner, 2)
            scales = scales_of(draw, net.rng, out)
            behind = draw(st.sampled_from(["nothing", "nothing", "Concat", "Transpose", "MaxPool", "Split"]))
            if behind == "Concat":
                acc, out, scales = net.node("Concat", acc, acc, axis=1), 2 * out, np.concatenate([scales, scales])
                scales = scales[:1] if len(scales) == 2 else scales
            elif behind == "Transpose" and len(scales) == 1:
                acc = net.node("Transpose", acc, perm=[0, 1, *range(now + 1, 1, -1)])
            elif behind == "MaxPool":
                acc = net.node("MaxPool", acc, kernel_shape=[1] * now, strides=[2] * now)
            elif behind == "Split" and out % 2 == 0:
                acc = net.node("Split", acc, outputs=2, axis=1)[0]
                out, scales = out // 2, scales[: out // 2]
        flags = {name: 1 for name in ("relu_flag", "sqrt_mode") if draw(st.integers(0, 4)) == 0}
        x = net.dequant(acc, scales, **flags)
        if draw(st.booleans()):
            x = net.node("Relu", x)
        channels, axes = out, now
        outputs.append(x)
        if now != len(shape) - 2 or channels > 24:
            break
    if draw(st.booleans()):
        outputs = outputs[-1:]  # else no scale is merged
    return net.finish(shape, *outputs), draw(st.sampled_from([0.1, 5.0, 1000.0]))


@SOME
@given(convolutional(), st.integers(0, 2**16))
def test_convolutions_and_pools_are_equal_bit_for_bit(drawn, seed):
    model, spread = drawn
    feed = feed_for(model, seed, spread)
    try:
        run_deploy(model, feed, "ideal")
    except ValueError:
        return  # a window that is larger than what it moves over
    assert_equal(model, feed)


@SOME
@given(convolutional(), st.integers(0, 2**16))
def test_integer_operators_and_halves_are_equal_too(drawn, seed):
    model, spread = drawn
    feed = feed_for(model, seed, spread)
    try:
        run_deploy(model, feed, "ideal")
    except ValueError:
        return
    assert_equal(model, feed, in_float=False)


@st.composite
def products(draw):
    """Gemm, or MatMul with the bias in an Add."""
    net = Net(draw(st.integers(0, 2**16)), draw(st.sampled_from([np.float32, np.float32, np.float16])))
    op, depth = draw(st.sampled_from(["Gemm", "MatMul"])), draw(st.sampled_from([1, 7, 64, 3000]))
    shape = [draw(st.integers(1, 3)), depth] if op == "Gemm" else [draw(st.integers(1, 2)), 3, depth]
    x, outputs = "x", []
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(1, 9))
        q = net.quant(x, 10.0 ** net.rng.uniform(-2, 2), draw(st.sampled_from([0, -128, 127, -5])))
        weight, bias = net.constant(integers(draw, net.rng, (depth, out))), bias_of(draw, net.rng, out)
        added = [] if bias is None else [net.constant(bias)]
        if op == "Gemm":
            acc = net.node("Gemm", q, weight, *added)
        else:
            acc = net.node("MatMul", q, weight)
            acc = net.node("Add", *draw(st.sampled_from([[acc, *added], [*added, acc]]))) if added else acc
        scales = scales_of(draw, net.rng, out)
        x = net.node("Relu", net.dequant(acc, scales)) if draw(st.booleans()) else net.dequant(acc, scales)
        depth = out
        outputs.append(x)
    outputs = outputs if draw(st.booleans()) else outputs[-1:]
    return net.finish(shape, *outputs), draw(st.sampled_from([0.1, 5.0, 1000.0]))


@SOME
@given(products(), st.integers(0, 2**16), st.sampled_from([None, False]))
def test_products_are_equal_bit_for_bit(drawn, seed, in_float):
    model, spread = drawn
    assert_equal(model, feed_for(model, seed, spread), in_float=in_float)


# Forms of their own


def test_a_chain_of_layers_with_everything_that_onnxruntime_likes_to_fuse():
    """Conv, Relu, Clip, Add, Mul and a second Conv: nothing may be multiplied into the weights."""
    net = Net(3)
    a = net.dequant(conv(net, net.quant("x", 17.3, -7), (8, 4, 3, 3), pads=[1] * 4, bias=99), np.full(8, 3.1e-3))
    b = net.node("Relu", a)
    c = net.dequant(conv(net, net.quant(b, 3.7), (8, 8, 1, 1)), 1.3e-3)
    d = net.node("Relu", net.node("Add", c, b))
    e = net.dequant(conv(net, net.quant(d, 0.77, -128), (8, 1, 3, 3), group=8, pads=[1] * 4), 2.3e-3)
    model = net.finish([1, 4, 9, 9], e, d)
    assert_equal(model, feed_for(model))
    assert_equal(model, feed_for(model), in_float=False)


def test_a_float_layer_in_front_of_a_quant_is_rounded_before_it_is_scaled():
    """Its weights are whole, so its sums are exact in any order; a tenth of them are ties once they are scaled."""
    net = Net(1)
    weight = net.constant(net.rng.integers(-3, 4, (4, 2, 3, 3)).astype(np.float32))
    q = net.quant(net.node("Conv", "x", weight, net.constant(np.ones(4, np.float32))), 0.1)
    model = net.finish([1, 2, 30, 30], net.dequant(conv(net, q, (3, 4, 1, 1)), 0.01))
    feed = {"x": np.random.default_rng(0).integers(-20, 20, (1, 2, 30, 30)).astype(np.float32)}
    assert_equal(model, feed)


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("offset", [-128, 127])
@pytest.mark.parametrize("sign", [-1, 1])
def test_saturated_inputs_and_extreme_weights(weight, offset, sign):
    """2,304 products for one output, each as large as can be: far beyond what float32 counts."""
    net = Net()
    acc = conv(net, net.quant("x", 1e6, offset), (2, 256, 3, 3), weight=weight, bias=-1, pads=[1] * 4)
    model = net.finish([1, 256, 3, 3], net.dequant(acc, 1e-5))
    assert_equal(model, {"x": np.full((1, 256, 3, 3), sign * 1e6, np.float32)})


@pytest.mark.parametrize("depth", [32768, 65537])
def test_a_product_of_very_many_terms(depth):
    net = Net()
    weight = net.rng.integers(-128, 128, (depth, 2)).astype(np.int8)
    weight[:, 1] = -128
    model = net.finish(
        [1, depth], net.dequant(net.node("Gemm", net.quant("x", 10, -128), net.constant(weight)), [1e-7, 1e-9])
    )
    assert_equal(model, feed_for(model, spread=20))


def test_sums_that_can_leave_int32_by_their_products_alone_are_refused():
    net = Net()
    weight = net.constant(np.full((66_000, 1), -128, np.int8))
    model = net.finish([1, 66_000], net.dequant(net.node("Gemm", net.quant("x", 1, -128), weight), 1e-9))
    with pytest.raises(NotAvailableError, match="Gemm 'Gemm_1' has so many weights for one output that its sums"):
        simulated(model)


@pytest.mark.parametrize("bias", [2**31 - 1, -(2**31), 2**31 - 400, 2**24 + 1])
def test_biases_near_the_limits_of_int32(bias):
    """The sums saturate, and the float32 of an accumulator is rounded."""
    assert_equal(model := single(bias=bias, deq=1e-6), feed_for(model))
    assert_equal(model, feed_for(model), in_float=False)
    net = Net()
    product = net.node("MatMul", net.quant("x", 9), net.constant(net.rng.integers(-128, 128, (5, 3)).astype(np.int8)))
    added = net.node("Add", net.constant(np.full(3, bias, np.int32)), product)
    model = net.finish([2, 4, 5], net.dequant(added, 1e-7))
    assert_equal(model, feed_for(model))


def test_infinity_saturates_and_what_is_no_number_becomes_zero():
    model = single(offset=-77)
    feed = feed_for(model)
    feed["x"].flat[:4] = np.inf, -np.inf, np.nan, np.finfo(np.float32).max
    assert_equal(model, feed)
    assert_equal(model, feed, in_float=False)
    assert np.isfinite(run(simulated(model).whole(), feed)["AscendDequant_2.0"]).all()


@pytest.mark.parametrize("in_float", [True, False])
def test_an_empty_batch_gives_an_empty_batch(in_float, monkeypatch):
    monkeypatch.setattr(integer_layers, "_is_exact", lambda largest: in_float)
    model = single(["N", 2, 4, 4], weight=(3, 2, 1, 1))
    for profile in NAMES:
        found = run(simulated(model, profile).whole(), {"x": np.zeros((0, 2, 4, 4), np.float32)})
        assert found["AscendDequant_2.0"].shape == (0, 3, 4, 4)


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 1e5, 2.0**-14, 65504.0, 2.0**23])
def test_scales_that_float16_holds_and_such_that_it_does_not(scale):
    model = single(scale=scale, offset=-5)
    assert_equal(model, feed_for(model, spread=30 / scale))


def test_anti_quant_undoes_a_quant():
    for dtype in (np.float32, np.float16):
        net = Net(dtype=dtype)
        q = net.quant("x", 12.3, 7)
        y = net.node("AscendAntiQuant", q, scale=1 / 12.3, offset=7.0, dtype=int(dtype == np.float16))
        z = net.dequant(conv(net, q, (2, 2, 1, 1)), 0.1)
        model = net.finish([1, 2, 3, 3], y, z)
        assert_equal(model, feed_for(model))


def test_float16_networks_that_say_float32_are_taken_for_what_they_are():
    net = Net(dtype=np.float16)
    y = net.node("Relu", net.dequant(conv(net, net.quant("x", 12.3), (2, 2, 1, 1)), 0.1))
    model = net.finish([1, 2, 3, 3], y)
    said = onnx.ModelProto()
    said.CopyFrom(model)
    for node in said.graph.node:
        for attribute in node.attribute:
            attribute.i = 0 if attribute.name == "dtype" else attribute.i
    feed = feed_for(model)
    found, expected = (run(simulated(m).whole(), feed)[y] for m in (said, model))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


def test_constants_may_be_nodes_and_weights_may_stand_behind_a_transpose():
    net = Net(2)
    weight = net.rng.integers(-128, 128, (3, 5)).astype(np.int8)
    plain = net.node("MatMul", net.quant("x", 9), net.constant(weight.T.copy()))
    plain = net.finish([2, 5], net.dequant(plain, 0.1))
    net = Net(2)
    turned = net.node("Transpose", net.node("Identity", net.constant(weight)), perm=[1, 0])
    other = net.finish([2, 5], net.dequant(net.node("MatMul", net.quant("x", 9), turned), 0.1))
    for tensor in list(other.graph.initializer):
        other.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor))
    del other.graph.initializer[:]
    feed = feed_for(plain)
    for profile in NAMES:
        found, expected = (list(run(simulated(m, profile).whole(), feed).values()) for m in (other, plain))
        np.testing.assert_array_equal(found, expected)


def test_nodes_may_stand_in_any_order():
    model = network().model
    feed = feed_for(model)
    expected = run(simulated(model).whole(), feed)
    turned = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(turned)
    found = run(simulated(model).whole(), feed)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_what_amct_wrote_in_2021():
    model = old_gemm()
    feed = {"input": np.random.default_rng(0).normal(size=(1024, 3)).astype(np.float32) * 99}
    assert_equal(model, feed)


def test_large_weights_stay_beside_the_model(tmp_path):
    net = Net()
    q = net.quant("x", 9, 3)
    model = net.finish([1, 80], net.dequant(net.node("Gemm", q, net.constant(np.ones((80, 99), np.int8))), 0.1))
    expected = run_deploy(model, feed_for(model), "ideal")["AscendDequant_2.0"]
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=100, location="weights")
    light = simulated(tmp_path / "net.onnx")
    assert sum(weight.nbytes for weight in light.weights.values()) == 80 * 99 * 4
    (found,) = SimulatedSession(tmp_path / "net.onnx").run(None, feed_for(model))
    np.testing.assert_array_equal(found, expected)


def test_the_model_in_memory_stays_as_it_is():
    model = network().model
    before = model.SerializeToString(deterministic=True)
    for profile in NAMES:
        simulated(model, profile)
    assert model.SerializeToString(deterministic=True) == before


# The session


def test_the_session_has_the_interface_of_onnxruntime():
    model = network().model
    session = SimulatedSession(model, "fixpipe", threads=1)
    assert session.profile is PROFILES["fixpipe"]
    assert [i.name for i in session.get_inputs()] == ["x"]
    names = [o.name for o in session.get_outputs()]
    assert names == [o.name for o in model.graph.output]
    feed = feed_for(model)
    everything = session.run(None, feed)
    assert [v.shape for v in everything] == [tuple(o.shape) for o in session.get_outputs()]
    np.testing.assert_array_equal(session.run(names[1:], feed)[0], everything[1])
    np.testing.assert_array_equal(session.run([], feed)[0], everything[0])


@pytest.mark.parametrize(
    "feed", [{}, {"y": np.zeros((1, 20, 4, 4), np.float32)}, {"x": np.zeros((1, 20, 4), np.float32)}, {"x": 3}]
)
def test_wrong_feeds_are_errors_of_onnxruntime(feed):
    session = SimulatedSession(network().model)
    with pytest.raises(Exception, match=r"(?i)input|x|rank|dimension|type|attribute") as caught:
        session.run(None, feed)
    assert not isinstance(caught.value, AssertionError)


def test_an_unknown_profile():
    with pytest.raises(
        ConfigError, match="profile must be one of ideal, fixpipe, v200, v100, found 'v300'; did you mean"
    ):
        SimulatedSession(network().model, "v300")
