"""Every layer type of Caffe: its import in onnxruntime against a slow, plain twin."""

from __future__ import annotations

import math

import naive_caffe as naive
import numpy as np
import pytest
from caffe_files import imported, layer, net, outputs
from graphs import run
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ModelError
from amct_onnx.formats.caffe.layers import LAYER_TYPES

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def draws(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@st.composite
def windows(draw, axes=2, largest=3):
    """The parameters of a convolution: as text, and as the twin takes them."""
    numbers = st.tuples(*[st.integers(1, largest)] * axes)
    kernel, stride, dilation = draw(numbers), draw(numbers), draw(numbers)
    pad = draw(st.tuples(*[st.integers(0, 2)] * axes))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    apart = axes == 2 and draw(st.booleans())
    parts = []
    for name, values in (("kernel", kernel), ("stride", stride), ("pad", pad)):
        once = "kernel_size" if name == "kernel" else name
        if apart:
            parts.append(f"{name}_h: {values[0]} {name}_w: {values[1]}")
        elif len(set(values)) == 1:
            parts.append(f"{once}: {values[0]}")
        else:
            parts += [f"{once}: {value}" for value in values]
    parts += [f"dilation: {value}" for value in dilation]
    return " ".join(parts), kernel, {"stride": stride, "pad": pad, "dilation": dilation, "group": group}


@EXAMPLES
@given(windows(), st.integers(3, 8), st.integers(3, 8), st.integers(1, 2), st.booleans(), seeds)
def test_convolution(window, height, width, per_group, biased, seed):
    text, kernel, how = window
    extents = [d * (k - 1) + 1 for d, k in zip(how["dilation"], kernel, strict=True)]
    assume(all(s + 2 * p >= e for s, p, e in zip((height, width), how["pad"], extents, strict=True)))
    group = how["group"]
    x, w, b = draws(seed, (2, per_group * group, height, width), (2 * group, per_group, *kernel), (2 * group,))
    params = f"num_output: {2 * group} group: {group} bias_term: {str(biased).lower()} {text}"
    found = outputs("Convolution", f"convolution_param {{ {params} }}", {"x": x}, [w, b] if biased else [w])
    close(found["y"], naive.convolution(x, w, b if biased else None, **how))


@pytest.mark.parametrize("axes", [1, 3])
def test_convolution_of_other_ranks(axes):
    x, w, b = draws(0, (1, 2, *[5] * axes), (3, 2, *[2] * axes), (3,))
    found = outputs(
        "Convolution", "convolution_param { num_output: 3 kernel_size: 2 stride: 2 pad: 1 }", {"x": x}, [w, b]
    )
    how = {"stride": [2] * axes, "pad": [1] * axes, "dilation": [1] * axes, "group": 1}
    close(found["y"], naive.convolution(x, w, b, **how))


@EXAMPLES
@given(windows(), st.integers(2, 5), st.integers(2, 5), st.integers(1, 2), st.booleans(), seeds)
def test_deconvolution(window, height, width, per_group, biased, seed):
    text, kernel, how = window
    sides = zip((height, width), kernel, how["stride"], how["pad"], how["dilation"], strict=True)
    assume(all(s * (side - 1) + d * (k - 1) + 1 - 2 * p > 0 for side, k, s, p, d in sides))
    group = how["group"]
    x, w, b = draws(seed, (2, per_group * group, height, width), (per_group * group, 2, *kernel), (2 * group,))
    params = f"num_output: {2 * group} group: {group} bias_term: {str(biased).lower()} {text}"
    found = outputs("Deconvolution", f"convolution_param {{ {params} }}", {"x": x}, [w, b] if biased else [w])
    close(found["y"], naive.deconvolution(x, w, b if biased else None, **how))


@settings(max_examples=150)
@given(
    st.sampled_from(["MAX", "AVE"]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    seeds,
)
@example("AVE", (5, 5), (3, 3), (2, 2), (0, 0), 0)
@example("AVE", (6, 6), (3, 3), (2, 2), (0, 0), 0)  # the last window reaches over the end
@example("AVE", (6, 6), (3, 3), (2, 2), (1, 1), 0)  # just to the end of the padding
@example("AVE", (7, 7), (3, 3), (3, 3), (1, 1), 0)
@example("AVE", (5, 5), (2, 2), (2, 2), (1, 1), 0)  # a window that would begin in the padding is clipped
@example("MAX", (5, 5), (2, 2), (2, 2), (1, 1), 0)
@example("AVE", (4, 7), (4, 2), (3, 3), (3, 0), 0)  # beyond the padding along one axis only
@example("AVE", (7, 4), (5, 4), (4, 3), (1, 2), 0)
@example("AVE", (2, 5), (3, 3), (2, 2), (0, 0), 0)  # a kernel that is larger than its input, rounded up to one window
@example("AVE", (1, 1), (5, 5), (4, 4), (1, 1), 0)
@example("MAX", (2, 1), (4, 4), (3, 4), (0, 1), 0)
def test_pooling(method, sides, kernel, stride, pad, seed):
    assume(all(p < k for p, k in zip(pad, kernel, strict=True)))
    sizes = naive.pooled_size(sides, kernel, stride, pad)
    assume(min(sizes) > 0)
    inside = all((n - 1) * s < side + p for n, s, side, p in zip(sizes, stride, sides, pad, strict=True))
    numbers = {"kernel": kernel, "stride": stride, "pad": pad}
    params = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in numbers.items())
    (x,) = draws(seed, (2, 3, *sides))
    block = f"pooling_param {{ pool: {method} {params} }}"
    if not inside:
        with pytest.raises(ModelError, match=r"layer 'l' .*last window begins"):
            outputs("Pooling", block, {"x": x})
        return
    found = outputs("Pooling", block, {"x": x})
    close(found["y"], naive.pooling(x, method, **numbers))


@pytest.mark.parametrize("rounding", ["round_mode: FLOOR", "ceil_mode: false"])
@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_pooling_rounded_down(method, rounding):
    (x,) = draws(1, (1, 2, 6, 8))
    found = outputs("Pooling", f"pooling_param {{ pool: {method} kernel_size: 3 stride: 2 {rounding} }}", {"x": x})
    close(found["y"], naive.pooling(x, method, kernel=(3, 3), stride=(2, 2), pad=(0, 0), sizes=(2, 3)))


@pytest.mark.parametrize(("method", "reduced"), [("MAX", np.max), ("AVE", np.mean)])
def test_global_pooling(method, reduced):
    (x,) = draws(2, (2, 3, 5, 4))
    found = outputs("Pooling", f"pooling_param {{ pool: {method} global_pooling: true }}", {"x": x})
    close(found["y"], reduced(x, axis=(2, 3), keepdims=True))


@EXAMPLES
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data(), st.booleans(), st.booleans(), seeds)
def test_inner_product(shape, data, biased, transposed, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rest = math.prod(shape[axis % len(shape) :])
    x, w, b = draws(seed, tuple(shape), (rest, 5) if transposed else (5, rest), (5,))
    params = f"num_output: 5 axis: {axis} bias_term: {str(biased).lower()} transpose: {str(transposed).lower()}"
    found = outputs("InnerProduct", f"inner_product_param {{ {params} }}", {"x": x}, [w, b] if biased else [w])
    close(found["y"], naive.inner_product(x, w, b if biased else None, axis=axis % len(shape), transpose=transposed))


@pytest.mark.parametrize("factor", [0.0, 1.0, 999.98])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_batch_norm(factor, shape):
    x, mean, variance = draws(3, shape, (3,), (3,))
    variance = variance**2 * factor
    weights = [mean, variance, np.array([factor], np.float32)]
    found = outputs("BatchNorm", "batch_norm_param { eps: 0.001 use_global_stats: true }", {"x": x}, weights)
    expected = naive.batch_norm(x, mean, variance, factor, 0.001)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-5)


@EXAMPLES
@given(st.integers(-4, 3), st.integers(-1, 4), st.booleans(), st.sampled_from(["Scale", "Bias"]), seeds)
def test_scale_and_bias(axis, count, biased, kind, seed):
    shape, first = (2, 3, 4, 2), axis % 4
    assume(first + count <= 4)
    covered = shape[first:] if count == -1 else shape[first : first + count]
    x, scale, shift = draws(seed, shape, covered, covered)
    block = f"axis: {axis} num_axes: {count}"
    shift_shown = naive.along(shift, first, 4)
    if kind == "Bias":
        found = outputs("Bias", f"bias_param {{ {block} }}", {"x": x}, [shift])
        close(found["y"], x + shift_shown)
        return
    params = f"scale_param {{ {block} bias_term: {str(biased).lower()} }}"
    found = outputs("Scale", params, {"x": x}, [scale, shift] if biased else [scale])
    close(found["y"], x * naive.along(scale, first, 4) + (shift_shown if biased else 0))


@pytest.mark.parametrize(("axis", "shape"), [(0, (2,)), (0, (2, 3)), (1, (3,)), (1, (3, 4, 5)), (-1, (5,)), (2, (4,))])
@pytest.mark.parametrize("kind", ["Scale", "Scale with bias", "Bias"])
def test_scale_and_bias_by_a_second_input(kind, axis, shape):
    x, other, shift = draws(4, (2, 3, 4, 5), shape, shape)
    shown, shift_shown = (naive.along(v, axis % 4, 4) for v in (other, shift))
    if kind == "Bias":
        close(outputs("Bias", f"bias_param {{ axis: {axis} }}", {"x": x, "z": other})["y"], x + shown)
    elif kind == "Scale":
        close(outputs("Scale", f"scale_param {{ axis: {axis} }}", {"x": x, "z": other})["y"], x * shown)
    else:
        block = f"scale_param {{ axis: {axis} bias_term: true }}"
        close(outputs("Scale", block, {"x": x, "z": other}, [shift])["y"], x * shown + shift_shown)


@EXAMPLES
@given(st.sampled_from([1, 3, 5]), st.booleans(), st.floats(0.1, 2), st.floats(0.1, 1), st.floats(0.5, 2), seeds)
def test_lrn(size, within, alpha, beta, k, seed):
    (x,) = draws(seed, (2, 4, 3, 5))
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    params = f"local_size: {size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region}"
    found = outputs("LRN", f"lrn_param {{ {params} }}", {"x": x})
    close(found["y"], naive.lrn(x, size=size, alpha=alpha, beta=beta, k=k, within=within))


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize(across, shared):
    x, scale = draws(5, (2, 3, 4, 2), (1,) if shared else (3,))
    x[0, :, 0, 0] = 0
    params = f"across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} eps: 0.0001"
    found = outputs("Normalize", f"norm_param {{ {params} }}", {"x": x}, [scale])
    close(found["y"], naive.normalize(x, scale, across_spatial=across, eps=1e-4))


POINTWISE = {
    "ReLU": ("", lambda x: np.maximum(x, 0)),
    "ReLU with slope": ("relu_param { negative_slope: 0.25 }", lambda x: np.where(x > 0, x, 0.25 * x)),
    "ReLU6": ("", lambda x: np.clip(x, 0, 6)),
    "Clip": ("clip_param { min: -1.5 max: 2.5 }", lambda x: np.clip(x, -1.5, 2.5)),
    "Sigmoid": ("", lambda x: 1 / (1 + np.exp(-x))),
    "TanH": ("", np.tanh),
    "ELU": ("elu_param { alpha: 0.5 }", lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    "AbsVal": ("", np.abs),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_values_one_by_one(name):
    params, expected = POINTWISE[name]
    x = np.concatenate([draws(6, (1, 2, 3, 4))[0] * 4, np.zeros((1, 2, 3, 1), np.float32)], axis=3)
    close(outputs(name.split()[0], params, {"x": x})["y"], expected(x.astype(np.float64)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_prelu(shared, shape):
    x, slope = draws(7, shape, (1,) if shared else (3,))
    found = outputs("PReLU", f"prelu_param {{ channel_shared: {str(shared).lower()} }}", {"x": x}, [slope])
    close(found["y"], np.where(x > 0, x, x * naive.along(slope, 1, len(shape))))


@EXAMPLES
@given(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.0, 1.5]))
def test_power(power, scale, shift):
    assume(power >= 0 or scale or shift)
    x = np.abs(draws(8, (2, 3, 4))[0]) + np.float32(0.1)
    found = outputs("Power", f"power_param {{ power: {power} scale: {scale} shift: {shift} }}", {"x": x})
    close(found["y"], (shift + scale * x.astype(np.float64)) ** power)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("operation", ["PROD", "SUM", "SUM with coefficients", "MAX", "MAX with coefficients"])
def test_eltwise(operation, count):
    arrays = draws(9, *[(2, 3, 4)] * count)
    coefficients = [1.0, -1.0, 0.5, 2.0][:count] if "with" in operation else [1.0] * count
    shown = " ".join(f"coeff: {c}" for c in coefficients) if "with" in operation else ""
    params = f"eltwise_param {{ operation: {operation.split()[0]} {shown} }}"
    found = outputs("Eltwise", params, {f"x{i}": a for i, a in enumerate(arrays)})
    expected = {
        "PROD": lambda: np.prod(arrays, axis=0),
        "SUM": lambda: sum(c * a for c, a in zip(coefficients, arrays, strict=True)),
        "MAX": lambda: np.max(arrays, axis=0),
    }[operation.split()[0]]()
    close(found["y"], expected)


@pytest.mark.parametrize("axis", ["", "axis: 0", "axis: -1", "concat_dim: 2"])
def test_concat(axis):
    index = int(axis.split()[-1]) if axis else 1
    arrays = [np.take(a, range(size), index) for size, a in enumerate(draws(10, *[(3, 3, 3)] * 3), 1)]
    found = outputs("Concat", f"concat_param {{ {axis} }}", {f"x{i}": a for i, a in enumerate(arrays)})
    close(found["y"], np.concatenate(arrays, axis=index))


@pytest.mark.parametrize(
    ("params", "axis", "points"),
    [
        ("", 1, [2, 4]),
        ("slice_point: 1 slice_point: 3", 1, [1, 3]),
        ("axis: -1 slice_point: 2 slice_point: 3", 2, [2, 3]),
    ],
)
def test_slice(params, axis, points):
    (x,) = draws(11, (2, 6, 4))
    found = outputs("Slice", f"slice_param {{ {params} }}", {"x": x}, tops="a b c")
    for name, expected in zip("abc", np.split(x, points, axis), strict=True):
        close(found[name], expected)


def test_slice_by_its_old_name_of_axis_into_one_part():
    (x,) = draws(11, (2, 6, 4))
    close(outputs("Slice", "slice_param { slice_dim: 2 }", {"x": x})["y"], x)


@EXAMPLES
@given(st.integers(-4, 3), st.integers(-4, 3))
def test_flatten(first, last):
    assume(first % 4 <= last % 4)
    (x,) = draws(12, (2, 3, 4, 5))
    found = outputs("Flatten", f"flatten_param {{ axis: {first} end_axis: {last} }}", {"x": x})
    shape = (*x.shape[: first % 4], math.prod(x.shape[first % 4 : last % 4 + 1]), *x.shape[last % 4 + 1 :])
    close(found["y"], x.reshape(shape))


@pytest.mark.parametrize(
    ("params", "shape"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 24)),
        ("shape { dim: 0 dim: 4 dim: -1 dim: 3 }", (2, 4, 2, 3)),
        ("shape { dim: 48 }", (48,)),
        ("shape { dim: 0 dim: 0 dim: 2 dim: 4 }", (2, 3, 2, 4)),
        ("shape { dim: -1 } axis: 1", (2, 24)),
        ("shape { dim: 1 dim: 0 } axis: 1 num_axes: 1", None),
        ("shape { dim: 1 dim: 3 } axis: 1 num_axes: 1", (2, 1, 3, 8)),
        ("shape { dim: 1 } axis: -1 num_axes: 0", (2, 3, 8, 1)),
        ("shape { dim: 2 dim: 4 } axis: -2", (2, 3, 2, 4)),
    ],
)
def test_reshape(params, shape):
    (x,) = draws(13, (2, 3, 8))
    if shape is None:
        with pytest.raises(ModelError, match=r"layer 'l' .*cannot take the shape"):
            outputs("Reshape", f"reshape_param {{ {params} }}", {"x": x})
    else:
        close(outputs("Reshape", f"reshape_param {{ {params} }}", {"x": x})["y"], x.reshape(shape))


@pytest.mark.parametrize(("order", "full"), [([0, 2, 3, 1], [0, 2, 3, 1]), ([3], [3, 0, 1, 2]), ([], [0, 1, 2, 3])])
def test_permute(order, full):
    (x,) = draws(14, (2, 3, 4, 5))
    params = " ".join(f"order: {axis}" for axis in order)
    close(outputs("Permute", f"permute_param {{ {params} }}", {"x": x})["y"], x.transpose(full))


@pytest.mark.parametrize("axis", [1, 0, 2, -1])
def test_softmax(axis):
    (x,) = draws(15, (2, 3, 4, 5))
    close(outputs("Softmax", f"softmax_param {{ axis: {axis} }}", {"x": x * 5})["y"], naive.softmax(x * 5, axis))


@pytest.mark.parametrize(
    ("params", "begin", "axis"),
    [("offset: 1", (1, 1), 2), ("offset: 1 offset: 2", (1, 2), 2), ("", (0, 0), 2), ("axis: -1 offset: 3", (3,), 3)],
)
def test_crop(params, begin, axis):
    x, size = draws(16, (2, 3, 6, 7), (1, 1, 4, 4))
    found = outputs("Crop", f"crop_param {{ {params} }}", {"x": x, "z": size})
    kept = (*[slice(None)] * axis, *(slice(b, b + 4) for b in begin))
    close(found["y"], x[kept])


@pytest.mark.parametrize(
    ("params", "sides"),
    [
        ("height: 9 width: 4", (9, 4)),
        ("zoom_factor: 3", (13, 16)),
        ("shrink_factor: 2", (3, 3)),
        ("shrink_factor: 2 zoom_factor: 4", (9, 9)),
        ("height: 1 width: 1", (1, 1)),
        ("height: 5 width: 6", (5, 6)),
        ("height: 9 width: 9 zoom_factor: 1", (5, 6)),
        ("height: 9 width: 7 zoom_factor: 2 shrink_factor: 2", (9, 7)),
    ],
)
def test_interp(params, sides):
    (x,) = draws(17, (2, 3, 5, 6))
    close(outputs("Interp", f"interp_param {{ {params} }}", {"x": x})["y"], naive.interp(x, sides))


def test_interp_to_the_size_of_a_second_input():
    x, size = draws(17, (2, 3, 5, 6), (1, 1, 8, 3))
    close(outputs("Interp", "", {"x": x, "z": size})["y"], naive.interp(x, (8, 3)))


@pytest.mark.parametrize("params", ["scale: 2", "stride: 2", "scale: 1 stride: 2"])
def test_upsample(params):
    (x,) = draws(18, (2, 3, 4, 5))
    close(outputs("Upsample", f"upsample_param {{ {params} }}", {"x": x})["y"], x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("kind", ["Dropout", "Split"])
def test_layers_that_pass_on(kind):
    (x,) = draws(19, (2, 3))
    text = net({"x": x.shape}, layer(kind, "", tops="a"), layer("ReLU", "", bottoms="a", tops="b", name="relu"))
    model = imported(text)
    assert [node.name for node in model.graph.node] == ["relu"]
    close(run(model, {"x": x})["b"], np.maximum(x, 0))


TESTED = {
    *(name.split()[0] for name in POINTWISE),
    *("BatchNorm", "Bias", "Concat", "Convolution", "Crop", "Deconvolution", "Eltwise", "Flatten", "InnerProduct"),
    *("Interp", "LRN", "Normalize", "PReLU", "Permute", "Pooling", "Power", "Reshape", "Scale", "Slice", "Softmax"),
    "Upsample",
}


def test_every_type_has_a_twin_here():
    assert set(LAYER_TYPES) == TESTED
