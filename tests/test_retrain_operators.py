"""Every operator of the training module against onnxruntime, on drawn attributes and shapes."""

import numpy as np
import onnx
import pytest
from graphs import run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from amct_onnx import NotAvailableError  # noqa: E402
from amct_onnx.retrain.module import to_torch  # noqa: E402
from amct_onnx.retrain.operators import OPERATORS  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = {}
torch.set_num_threads(1)  # the tensors are small
seeds = st.integers(0, 2**16)


def drawn(*ops, examples=8):
    """A test of `case(draw, op)`, which gives inputs, attributes and what else `check` takes."""

    def register(case):
        @settings(max_examples=examples)
        @given(st.data())
        def test(op, data):
            inputs, attributes, *options = case(data.draw, op)
            check(op, inputs, attributes, **(options[0] if options else {}))

        DRAWN.update(dict.fromkeys(ops))
        return pytest.mark.parametrize("op", ops)(test)

    return register


def one_node(op, inputs, attributes, opset, outputs):
    """A model of one node. Integers and what is empty are initializers, as exporters write them; the rest is fed."""
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    feed = {name: value for name, value in zip(names, inputs, strict=True) if name}
    fixed = {n: v for n, v in feed.items() if n != "x0" and v.dtype == np.int64}
    fed = {n: v for n, v in feed.items() if n not in fixed}
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed.items()],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)],
        [numpy_helper.from_array(v, n) for n, v in fixed.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8)), fed


def check(op, inputs, attributes, *, opset=17, outputs=1, rtol=1e-5):
    inputs = [None if value is None else np.asarray(value) for value in inputs]
    model, feed = one_node(op, inputs, attributes, opset, outputs)
    expected = list(run(model, feed, optimize=False).values())
    with torch.no_grad():
        found = to_torch(model).eval()(**{name: torch.from_numpy(value.copy()) for name, value in feed.items()})
    found = found if isinstance(found, tuple) else (found,)
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours.numpy()
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-3) if theirs.dtype.kind == "f" else 1
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * largest)


def normal(draw, *shape):
    return np.random.default_rng(draw(seeds)).normal(size=shape).astype(np.float32)


def positive(draw, *shape):
    return np.abs(normal(draw, *shape)) + np.float32(0.1)


def shape_of(draw, low=1, high=4, largest=5):
    return tuple(draw(st.lists(st.integers(1, largest), min_size=low, max_size=high)))


def edges(draw, *shape):
    """Normal numbers with zeros and a large one among them."""
    values = normal(draw, *shape).ravel()
    values[: len(values) // 4] = 0
    values[-1] = 30
    return values.reshape(shape)


# element by element


@drawn(
    "Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin"
)
def test_unary(draw, op):
    return [edges(draw, *shape_of(draw, 0))], {}


@drawn("HardSwish", "Mish", "Softplus", "Softsign", "Tanh")
def test_activation(draw, op):
    return [edges(draw, *shape_of(draw))], {}, {"opset": 18, "rtol": 2e-5}


@drawn("Log", "Reciprocal", "Sqrt")
def test_unary_of_positive(draw, op):
    return [positive(draw, *shape_of(draw, 0))], {}


def broadcast(draw):
    shape = shape_of(draw)
    other = [size if draw(st.booleans()) else 1 for size in shape][draw(st.integers(0, len(shape))) :]
    return shape, tuple(other)


@drawn("Add", "Div", "Mul", "Sub")
def test_binary(draw, op):
    a, b = broadcast(draw)
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(seeds))
        return [rng.integers(-9, 9, size=a), rng.integers(1, 9, size=b)], {}
    return [normal(draw, *a), positive(draw, *b)], {}


@drawn("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def test_comparison(draw, op):
    rng = np.random.default_rng(draw(seeds))
    a, b = broadcast(draw)
    return [rng.integers(-2, 3, size=a).astype(np.float32), rng.integers(-2, 3, size=b).astype(np.float32)], {}


@drawn("And", "Or", "Xor", "Not")
def test_logic(draw, op):
    a, b = broadcast(draw)
    return [normal(draw, *a) > 0, normal(draw, *b) > 0][: 1 if op == "Not" else 2], {}


@drawn("Max", "Mean", "Min", "Sum")
def test_of_many(draw, op):
    a, b = broadcast(draw)
    return [normal(draw, *a), normal(draw, *b), normal(draw, *b)][: draw(st.integers(1, 3))], {}


@drawn("Pow")
def test_pow(draw, op):
    a, b = broadcast(draw)
    return [positive(draw, *a), np.random.default_rng(draw(seeds)).integers(-2, 4, size=b).astype(np.float32)], {}


@drawn("Mod")
def test_mod(draw, op):
    a, b = broadcast(draw)
    if draw(st.booleans()):
        return [normal(draw, *a), positive(draw, *b)], {"fmod": 1}
    rng = np.random.default_rng(draw(seeds))
    return [rng.integers(-9, 9, size=a), rng.integers(1, 9, size=b)], {"fmod": draw(st.integers(0, 1))}


@drawn("Clip")
def test_clip(draw, op):
    x = normal(draw, *shape_of(draw, 0))
    low, high = draw(st.sampled_from([None, -0.5])), draw(st.sampled_from([None, 0.3]))
    if draw(st.booleans()):
        limits = {name: value for name, value in (("min", low), ("max", high)) if value is not None}
        return [x], limits, {"opset": 9}
    return [x, *(None if v is None else np.float32(v) for v in (low, high))], {}


@drawn("IsInf", "IsNaN")
def test_not_finite(draw, op):
    x = normal(draw, 6)
    x[:3] = np.inf, -np.inf, np.nan
    signs = {"detect_negative": draw(st.integers(0, 1)), "detect_positive": draw(st.integers(0, 1))}
    return [x], signs if op == "IsInf" else {}


@drawn("Where")
def test_where(draw, op):
    a, b = broadcast(draw)
    return [normal(draw, *a) > 0, normal(draw, *b), normal(draw, *a)], {}


@drawn("CumSum")
def test_cum_sum(draw, op):
    x = normal(draw, *shape_of(draw))
    flags = {"exclusive": draw(st.integers(0, 1)), "reverse": draw(st.integers(0, 1))}
    return [x, np.int64(draw(st.integers(-x.ndim, x.ndim - 1)))], flags


@drawn("Celu", "Elu", "HardSigmoid", "LeakyRelu", "Selu", "ThresholdedRelu")
def test_activation_with_alpha(draw, op):
    attributes = {"alpha": draw(st.floats(0.125, 1.5, width=32))} if draw(st.booleans()) else {}
    if op == "HardSigmoid" and attributes:
        attributes["beta"] = 0.25
    return [normal(draw, *shape_of(draw))], attributes


@drawn("Gelu")
def test_gelu(draw, op):
    return [normal(draw, 4, 5)], {"approximate": draw(st.sampled_from(["none", "tanh"]))}, {"opset": 20}


@drawn("PRelu")
def test_prelu(draw, op):
    shape = shape_of(draw, 2)
    return [normal(draw, *shape), normal(draw, shape[1], *([1] * (len(shape) - 2)))], {}


@drawn("LogSoftmax", "Softmax")
def test_softmax(draw, op):
    x = edges(draw, *shape_of(draw, 2))
    opset = draw(st.sampled_from([11, 13]))
    return [x], {"axis": draw(st.integers(-x.ndim, x.ndim - 1))} if draw(st.booleans()) else {}, {"opset": opset}


@drawn("Dropout")
def test_dropout_in_eval_mode(draw, op):
    return [normal(draw, 3, 4)], {}, {"outputs": draw(st.integers(1, 2))}


# windows


def window(draw, axes, sizes, *, dilated=True):
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    attributes = {"strides": [draw(st.integers(1, 3)) for _ in range(axes)]}
    if dilated and draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(axes)]
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode != "NOTSET":
        attributes["auto_pad"] = mode
        # what SAME means with dilations, or with gaps between the windows, onnxruntime and the standard do not say
        attributes.pop("dilations", None)
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    elif draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, max(0, k - 1))) for k in kernel * 2]
    return kernel, attributes


@drawn("Conv", examples=40)
def test_conv(draw, op):
    axes, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sizes = [draw(st.integers(5, 7)) for _ in range(axes)]
    kernel, attributes = window(draw, axes, sizes)
    bias = [normal(draw, 2 * group)] if draw(st.booleans()) else []
    return [normal(draw, 2, 3 * group, *sizes), normal(draw, 2 * group, 3, *kernel), *bias], {
        **attributes,
        "group": group,
        "kernel_shape": kernel,
    }


@drawn("ConvTranspose", examples=40)
def test_conv_transpose(draw, op):
    axes, group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sizes = [draw(st.integers(3, 5)) for _ in range(axes)]
    kernel, attributes = window(draw, axes, sizes)
    if "auto_pad" not in attributes and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in attributes["strides"]]
    bias = [normal(draw, 2 * group)] if draw(st.booleans()) else []
    return [normal(draw, 2, 3 * group, *sizes), normal(draw, 3 * group, 2, *kernel), *bias], {
        **attributes,
        "group": group,
        "kernel_shape": kernel,
    }


@drawn("AveragePool", "MaxPool", examples=40)
def test_pool(draw, op):
    axes = draw(st.integers(1, 3))
    sizes = [draw(st.integers(5, 8)) for _ in range(axes)]
    kernel, attributes = window(draw, axes, sizes, dilated=op == "MaxPool")
    if attributes.get("auto_pad", "NOTSET") == "NOTSET":
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    return [normal(draw, 2, 3, *sizes)], {**attributes, "kernel_shape": kernel}, {"opset": 19}


@drawn("GlobalAveragePool", "GlobalMaxPool")
def test_global_pool(draw, op):
    return [normal(draw, *shape_of(draw, 3, 5))], {}


# products


@drawn("Gemm")
def test_gemm(draw, op):
    m, k, n = (draw(st.integers(1, 4)) for _ in range(3))
    turned = {"transA": draw(st.integers(0, 1)), "transB": draw(st.integers(0, 1))}
    c = draw(st.sampled_from([None, (), (n,), (1, n), (m, n), (m, 1)]))
    a, b = (k, m) if turned["transA"] else (m, k), (n, k) if turned["transB"] else (k, n)
    inputs = [normal(draw, *a), normal(draw, *b), *([] if c is None else [normal(draw, *c)])]
    return inputs, {
        **turned,
        "alpha": draw(st.sampled_from([1.0, 0.5])),
        "beta": draw(st.sampled_from([1.0, 0.0, 2.0])),
    }


@drawn("MatMul")
def test_matmul(draw, op):
    shapes = draw(
        st.sampled_from(
            [((3,), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 1)), ((3,), (5, 3, 2))]
        )
    )
    return [normal(draw, *shape) for shape in shapes], {}


@drawn("Einsum", examples=4)
def test_einsum(draw, op):
    equation = draw(st.sampled_from(["bij,bjk->bik", "bij,bjk->bk", "...ij,...jk->...ik"]))
    return [normal(draw, 2, 3, 4), normal(draw, 2, 4, 5)], {"equation": equation}


# normalization


@drawn("BatchNormalization")
def test_batch_normalization_in_eval_mode(draw, op):
    shape = shape_of(draw, 2)
    c = shape[1]
    parts = [normal(draw, c), normal(draw, c), normal(draw, c), positive(draw, c)]
    return [normal(draw, *shape), *parts], {"epsilon": draw(st.sampled_from([1e-5, 1e-3]))}


@drawn("InstanceNormalization")
def test_instance_normalization(draw, op):
    shape = (*shape_of(draw, 3, 4), 4)
    return [normal(draw, *shape), normal(draw, shape[1]), normal(draw, shape[1])], {"epsilon": 1e-2}, {"rtol": 1e-4}


@drawn("LayerNormalization")
def test_layer_normalization(draw, op):
    shape = (*shape_of(draw, 1, 3), 6)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    tail = shape[axis % len(shape) :]
    shift = [normal(draw, *tail)] if draw(st.booleans()) else []
    return [normal(draw, *shape), normal(draw, *tail), *shift], {"axis": axis}, {"rtol": 1e-4}


@drawn("GroupNormalization")
def test_group_normalization(draw, op):
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    opset = draw(st.sampled_from([18, 21]))
    c = groups if opset == 18 else groups * each
    x = normal(draw, 2, groups * each, 3, 3)
    return [x, normal(draw, c), normal(draw, c)], {"num_groups": groups}, {"opset": opset, "rtol": 1e-4}


@drawn("LRN")
def test_lrn(draw, op):
    size = draw(st.sampled_from([1, 3, 5]))
    return [normal(draw, 2, 6, 3, 3)], {"size": size, "alpha": 0.1, "beta": 0.5, "bias": 1.5}


@drawn("LpNormalization")
def test_lp_normalization(draw, op):
    return [normal(draw, 3, 4, 2)], {"axis": draw(st.integers(-3, 2)), "p": draw(st.integers(1, 2))}


# reductions


REDUCED_BY_INPUT_FROM_18 = [
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
]


@drawn(*REDUCED_BY_INPUT_FROM_18, "ReduceSum")
def test_reduction(draw, op):
    x = positive(draw, *shape_of(draw, 0 if op == "ReduceSum" else 1))
    opset = draw(st.sampled_from([12, 18]))
    axes = draw(st.none() | st.sets(st.integers(-x.ndim, -1), min_size=1)) if x.ndim else None
    attributes = {"keepdims": draw(st.integers(0, 1))}
    if axes is None:
        return [x], attributes, {"opset": opset}
    if opset == 12:
        return [x], {**attributes, "axes": sorted(axes)}, {"opset": opset}
    return [x, np.array(sorted(axes), np.int64)], attributes, {"opset": opset}


@drawn("ArgMax", "ArgMin")
def test_arg(draw, op):
    x = np.random.default_rng(draw(seeds)).integers(0, 3, size=shape_of(draw)).astype(np.float32)
    flags = {"keepdims": draw(st.integers(0, 1)), "select_last_index": draw(st.integers(0, 1))}
    return [x], {**flags, "axis": draw(st.integers(-x.ndim, x.ndim - 1))}


@drawn("TopK")
def test_top_k(draw, op):
    x = normal(draw, *shape_of(draw))
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    k = np.array([draw(st.integers(1, x.shape[axis]))], np.int64)
    return [x, k], {"axis": axis, "largest": draw(st.integers(0, 1))}, {"outputs": 2}


# shapes


@drawn("Cast")
def test_cast(draw, op):
    to = draw(st.sampled_from([1, 6, 7, 9, 10, 11]))
    return [np.trunc(5 * normal(draw, 3, 4))], {"to": to}


@drawn("CastLike")
def test_cast_like(draw, op):
    return [normal(draw, 3), np.zeros(2, np.float64)], {}


@drawn("Concat")
def test_concat(draw, op):
    shape = list(shape_of(draw))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        shape[axis] = draw(st.integers(0, 3))
        parts.append(normal(draw, *shape))
    return parts, {"axis": axis}


@drawn("Constant", "ConstantOfShape")
def test_constants(draw, op):
    if op == "Constant":
        return [], draw(st.sampled_from([{"value_float": 2.5}, {"value_ints": [3, 4]}, {"value_int": 7}]))
    shape = np.array(draw(st.lists(st.integers(0, 3), max_size=3)), np.int64)
    value = {"value": numpy_helper.from_array(np.array([3], np.int64))} if draw(st.booleans()) else {}
    return [shape], value


@drawn("Shape", "Size")
def test_shape(draw, op):
    x = normal(draw, *shape_of(draw, 0))
    ends = {"start": draw(st.integers(-5, 5)), "end": draw(st.integers(-5, 5))} if draw(st.booleans()) else {}
    return [x], ends if op == "Shape" and x.ndim else {}


@drawn("Reshape")
def test_reshape(draw, op):
    wanted, allow = draw(st.sampled_from([([-1], 0), ([0, -1], 0), ([4, 0, 3], 0), ([3, 4, 2], 0), ([2, 3, -1], 1)]))
    return [normal(draw, 2, 3, 4) if wanted != [4, 0, 3] else normal(draw, 4, 2, 3), np.array(wanted)], {
        "allowzero": allow
    }


@drawn("Flatten")
def test_flatten(draw, op):
    x = normal(draw, *shape_of(draw))
    return [x], {"axis": draw(st.integers(-x.ndim, x.ndim))}


@drawn("Squeeze", "Unsqueeze")
def test_squeeze(draw, op):
    axes = sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=3)))
    shape = [1 if axis in axes else 3 for axis in range(4)]
    x = normal(draw, *(shape if op == "Squeeze" else [3] * (4 - len(axes))))
    axes = [axis - 4 for axis in axes] if draw(st.booleans()) else axes
    form = draw(st.integers(0, 2 if op == "Squeeze" else 1))
    if form == 2:
        return [x], {}
    return ([x, np.array(axes)], {}) if form else ([x], {"axes": axes}, {"opset": 11})


@drawn("Transpose")
def test_transpose(draw, op):
    x = normal(draw, *shape_of(draw))
    return [x], {"perm": draw(st.permutations(range(x.ndim)))} if draw(st.booleans()) else {}


@drawn("Split")
def test_split(draw, op):
    form = draw(st.integers(0, 3))
    if form == 0:
        return [normal(draw, 2, 5)], {"axis": 1, "split": [2, 3]}, {"opset": 11, "outputs": 2}
    if form == 1:
        return [normal(draw, 2, 5), np.array([1, 0, 4])], {"axis": -1}, {"outputs": 3}
    if form == 2:
        return [normal(draw, 6, 2)], {}, {"outputs": 3}
    return [normal(draw, 7, 2)], {"num_outputs": 3}, {"outputs": 3, "opset": 18}


@drawn("Slice", examples=40)
def test_slice(draw, op):
    x = normal(draw, *shape_of(draw, largest=6))
    axes = sorted(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1)))
    steps = [draw(st.sampled_from([1, 2, -1, -2])) for _ in axes]
    far = [(2**63 - 1 if step > 0 else -(2**63) + 1) for step in steps]
    starts, ends = [draw(st.integers(-8, 8)) for _ in axes], [draw(st.integers(-8, 8) | st.just(end)) for end in far]
    if min(steps) == max(steps) == 1:
        return [x], {"starts": starts, "ends": ends, "axes": axes}, {"opset": 9}
    return [x, *(np.array(part, np.int64) for part in (starts, ends, axes, steps))], {}


@drawn("Expand", "Tile")
def test_expand(draw, op):
    shape, part = broadcast(draw)
    if op == "Expand":
        return [normal(draw, *part), np.array(shape)], {}
    return [normal(draw, *shape), np.array([draw(st.integers(0, 2)) for _ in shape])], {}


@drawn("Range", examples=6)
def test_range(draw, op):
    start, stop, step = draw(st.sampled_from([(0, 5, 1), (7, 1, -2), (0, 0, 1), (1, 6, 2)]))
    return [np.int32(start), np.int32(stop), np.int32(step)], {}


@drawn("DepthToSpace", "SpaceToDepth")
def test_blocks(draw, op):
    size = draw(st.integers(1, 3))
    if op == "SpaceToDepth":
        return [normal(draw, 2, 3, 2 * size, 3 * size)], {"blocksize": size}
    mode = draw(st.sampled_from(["DCR", "CRD"]))
    return [normal(draw, 2, 2 * size**2, 2, 3)], {"blocksize": size, "mode": mode}


@drawn("Trilu")
def test_trilu(draw, op):
    k = [np.int64(draw(st.integers(-2, 2)))] if draw(st.booleans()) else []
    return [normal(draw, 2, 3, 4), *k], {"upper": draw(st.integers(0, 1))}


@drawn("Pad", examples=30)
def test_pad(draw, op):
    x = normal(draw, 2, 5, 4)
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    low = -2 if mode == "constant" else 0
    pads = [draw(st.integers(low, 2)) if i % 3 else 0 for i in range(6)]
    if draw(st.booleans()) and min(pads) >= 0:
        return [x], {"pads": pads, "mode": mode, "value": 1.5 if mode == "constant" else 0.0}, {"opset": 9}
    value = [np.float32(2)] if draw(st.booleans()) and mode == "constant" else []
    return [x, np.array(pads), *value], {"mode": mode}


@drawn("Gather")
def test_gather(draw, op):
    x = normal(draw, *shape_of(draw))
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    size = x.shape[axis]
    indices = np.random.default_rng(draw(seeds)).integers(-size, size, size=shape_of(draw, 0, 2))
    return [x, np.asarray(indices, np.int64)], {"axis": axis}


@drawn("GatherElements", "ScatterElements")
def test_elements(draw, op):
    axis = draw(st.integers(-2, 1))
    rng = np.random.default_rng(draw(seeds))
    x, indices = normal(draw, 4, 4), np.array([rng.permutation(4) - 4 * rng.integers(0, 2) for _ in range(4)])
    indices = indices if axis % 2 else indices.T.copy()
    if op == "GatherElements":
        return [x, indices], {"axis": axis}
    mode = draw(st.sampled_from(["none", "add", "mul", "max", "min"]))
    return [x, indices, normal(draw, 4, 4)], {"axis": axis, "reduction": mode}, {"opset": 18}


@drawn("GatherND", "ScatterND")
def test_nd(draw, op):
    indices = np.array(draw(st.sampled_from([[[0], [2]], [[0, 1], [2, -1]]])), np.int64)
    x = normal(draw, 3, 4, 2)
    if op == "GatherND":
        return [x, indices], {}
    updates = normal(draw, 2, *x.shape[indices.shape[1] :])
    return [x, indices, updates], {"reduction": draw(st.sampled_from(["none", "add"]))}


@drawn("NonZero", examples=5)
def test_non_zero(draw, op):
    return [np.maximum(normal(draw, 3, 4), 0)], {}


@drawn("OneHot")
def test_one_hot(draw, op):
    indices = np.random.default_rng(draw(seeds)).integers(-4, 4, size=(2, 3))
    return [indices, np.int64(4), np.array([-1, 2], np.float32)], {"axis": draw(st.integers(-3, 2))}


@drawn("Resize", examples=60)
def test_resize(draw, op):
    method = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    axes = draw(st.integers(1, 2)) if method == "linear" else 2
    sizes = [draw(st.integers(2, 5)) for _ in range(axes)]
    x = normal(draw, 2, 3, *sizes)
    scales = [draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in sizes]
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
    attributes = {"mode": method, "coordinate_transformation_mode": draw(st.sampled_from(modes))}
    if method == "nearest":
        roundings = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]
        attributes["nearest_mode"] = draw(st.sampled_from(roundings))
        assume(attributes["coordinate_transformation_mode"] != "half_pixel_symmetric")  # refused
    if method == "cubic":
        attributes |= {"cubic_coeff_a": -0.5, "exclude_outside": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        new = np.array([2, 3, *(max(1, int(n * s)) for n, s in zip(sizes, scales, strict=True))])
        return [x, None, None, new], attributes, {"opset": 19, "rtol": 1e-4}
    return [x, None, np.array([1, 1, *scales], np.float32)], attributes, {"opset": 19, "rtol": 1e-4}


@drawn("Upsample")
def test_upsample(draw, op):
    scales = np.array([1, 1, draw(st.sampled_from([1.0, 2.0])), draw(st.sampled_from([2.0, 3.0]))], np.float32)
    return [normal(draw, 1, 2, 3, 3), scales], {"mode": draw(st.sampled_from(["nearest", "linear"]))}, {"opset": 9}


# recurrent


@drawn("GRU", "LSTM", "RNN", examples=20)
def test_recurrent(draw, op):
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    d, hidden, features, batch = (2 if direction == "bidirectional" else 1), 3, 4, 2
    inputs = [normal(draw, 5, batch, features), normal(draw, d, gates * hidden, features)]
    inputs += [normal(draw, d, gates * hidden, hidden), normal(draw, d, 2 * gates * hidden)]
    inputs[3] = None if draw(st.booleans()) else inputs[3]
    inputs += [None, normal(draw, d, batch, hidden) if draw(st.booleans()) else None]
    attributes = {"hidden_size": hidden, "direction": direction}
    if op == "LSTM":
        inputs += [normal(draw, d, batch, hidden), normal(draw, d, 3 * hidden) if draw(st.booleans()) else None]
    elif op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    return inputs, attributes, {"outputs": 3 if op == "LSTM" else 2}


def test_every_operator_of_the_table_is_checked():
    assert sorted(DRAWN) == sorted(OPERATORS)


# what is not available


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("LSTM", [(1, 1, 2), (1, 4, 2), (1, 4, 1)], {"hidden_size": 1, "layout": 1}, "layout=1"),
        ("LSTM", [(1, 1, 2), (1, 4, 2), (1, 4, 1)], {"hidden_size": 1, "clip": 3.0}, "clip=3.0"),
        ("RNN", [(1, 1, 2), (1, 1, 2), (1, 1, 1)], {"hidden_size": 1, "activations": ["Relu"]}, "activations"),
        ("AveragePool", [(1, 1, 5)], {"kernel_shape": [2], "dilations": [2]}, "dilations"),
        ("Conv", [(1, 1, 5, 5, 5, 5), (1, 1, 1, 1, 1, 1)], {}, "4-D convolution"),
    ],
)
def test_a_form_that_is_not_available_is_named_with_its_node(op, inputs, attributes, said):
    model, feed = one_node(op, [np.zeros(shape, np.float32) for shape in inputs], attributes, 17, 1)
    module = to_torch(model)
    with pytest.raises(NotAvailableError, match=rf"node 'node' \({op}\): .*{said}"):
        module(**{name: torch.from_numpy(value) for name, value in feed.items()})


def test_an_operator_that_is_not_available_is_named_with_its_node():
    node = helper.make_node("NonMaxSuppression", ["x"], ["y"], name="boxes")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")])
    with pytest.raises(NotAvailableError, match="node 'boxes': the operator NonMaxSuppression is not available"):
        to_torch(helper.make_model(graph))
