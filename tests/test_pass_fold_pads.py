"""fold pads: a constant zero Pad goes into the pads of the Conv or AveragePool behind it, and nothing else does."""

import numpy as np
import pytest
from graphs import assert_close, assert_same_numbers, model, nodes_as_text, random_feed, rewritten, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from amct_onnx.passes.fold_pads import FOLD_PADS
from amct_onnx.passes.name_nodes import NAME_NODES

RNG = np.random.default_rng(7)
ONES = [0, 0, 1, 1, 0, 0, 1, 1]


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def source_of(pad, target, weights, *, inputs="float[1, 2, 6, 6] x", outputs="float y", rest="", opset=13):
    weights = {"w": normal(3, 2, 3, 3), "amounts": np.array(ONES), "zero": np.float32(0)} | weights
    text = f"g ({inputs}) => ({outputs}) {{ [pad] p = {pad} [target] y = {target} {rest} }}"
    used = {name: values for name, values in weights.items() if any(f"{name}{end}" in text for end in ",)")}
    source = model(text, used, opset=opset)
    for value in source.graph.output:
        value.type.tensor_type.ClearField("shape")
    return source


def check_folded(source, line):
    """One Pad is gone, the target reads what the Pad read, and the numbers stay."""
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert nodes_as_text(result) == [line]
    assert state.gone == {"pad": "folded into the pads of 'target'"}
    assert state.remarks == {}
    assert_same_numbers(source, result, rtol=1e-6)


def check_left_alone(source, feed=None):
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert (state.gone, state.remarks) == ({}, {})
    assert_as_unoptimized(source, result, feed, rtol=0, optimize=(False,))


def assert_as_unoptimized(source, result, feed=None, *, rtol, optimize=(False, True)):
    """The outputs of the source without optimizations, by which onnxruntime folds Pads itself, more than it may."""
    feed = random_feed(source) if feed is None else feed
    expected = run(source, feed, optimize=False)
    for choice in optimize:
        for name, values in run(result, feed, optimize=choice).items():
            assert_close(values, expected[name], rtol=rtol)


@pytest.mark.parametrize(
    ("pad", "target", "line"),
    [
        ("Pad(x, amounts)", "Conv(p, w)", "Conv<pads=[1, 1, 1, 1]>(x, float[3, 2, 3, 3])"),
        ("Pad(x, amounts, zero)", "Conv(p, w)", "Conv<pads=[1, 1, 1, 1]>(x, float[3, 2, 3, 3])"),
        ("Pad(x, amounts, )", "Conv(p, w)", "Conv<pads=[1, 1, 1, 1]>(x, float[3, 2, 3, 3])"),
        (
            'Pad<mode = "constant">(x, amounts)',
            "Conv<pads = [0, 1, 2, 3], strides = [2, 1]>(p, w)",
            "Conv<pads=[1, 2, 3, 4], strides=[2, 1]>(x, float[3, 2, 3, 3])",
        ),
        (
            "Pad(x, amounts)",
            'Conv<auto_pad = "VALID">(p, w)',
            "Conv<pads=[1, 1, 1, 1]>(x, float[3, 2, 3, 3])",
        ),
        (
            "Pad(x, amounts)",
            'Conv<auto_pad = "NOTSET", pads = [1, 1, 1, 1]>(p, w)',
            "Conv<pads=[2, 2, 2, 2]>(x, float[3, 2, 3, 3])",
        ),
        (
            "Pad(x, amounts)",
            "AveragePool<kernel_shape = [3, 3]>(p)",
            "AveragePool<count_include_pad=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
        ),
        (
            "Pad(x, amounts)",
            "AveragePool<kernel_shape = [3, 3], pads = [0, 0, 0, 0], count_include_pad = 0>(p)",
            "AveragePool<count_include_pad=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
        ),
        (
            "Pad(x, amounts)",
            "AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 1], count_include_pad = 1>(p)",
            "AveragePool<count_include_pad=1, kernel_shape=[3, 3], pads=[2, 1, 2, 2]>(x)",
        ),
    ],
)
def test_before_and_after(pad, target, line):
    check_folded(source_of(pad, target, {}), f"[target] y = {line}")


@pytest.mark.parametrize(
    ("inputs", "kernel", "amounts", "pads"),
    [
        ("float[1, 2, 9] x", (3, 2, 3), [0, 0, 2, 0, 0, 1], [2, 1]),
        ("float[1, 2, 4, 5, 6] x", (3, 2, 3, 3, 3), [0, 0, 1, 0, 2, 0, 0, 0, 1, 1], [1, 0, 2, 0, 1, 1]),
    ],
    ids=["1-D", "3-D"],
)
def test_other_ranks_fold_too(inputs, kernel, amounts, pads):
    source = source_of(
        "Pad(x, amounts)", "Conv(p, w)", {"w": normal(*kernel), "amounts": np.array(amounts)}, inputs=inputs
    )
    check_folded(source, f"[target] y = Conv<pads={pads}>(x, float{list(kernel)})")


def test_a_pad_by_attribute_folds():
    source = source_of("Pad<pads = [0, 0, 1, 2, 0, 0, 3, 4], value = 0.0>(x)", "Conv(p, w)", {}, opset=10)
    check_folded(source, "[target] y = Conv<pads=[1, 2, 3, 4]>(x, float[3, 2, 3, 3])")


def test_half_precision_folds():
    weights = {"w": normal(3, 2, 3, 3, dtype=np.float16), "zero": np.float16(0)}
    source = source_of(
        "Pad(x, amounts, zero)", "Conv(p, w)", weights, inputs="float16[1, 2, 6, 6] x", outputs="float16 y"
    )
    check_folded(source, "[target] y = Conv<pads=[1, 1, 1, 1]>(x, float16[3, 2, 3, 3])")


def test_a_pad_of_nothing_folds():
    source = source_of("Pad(x, amounts)", "Conv(p, w)", {"amounts": np.zeros(8, np.int64)})
    check_folded(source, "[target] y = Conv<pads=[0, 0, 0, 0]>(x, float[3, 2, 3, 3])")


def test_two_pads_in_a_row_fold_both():
    text = "g (float[1, 2, 6, 6] x) => (float y) "
    text += "{ [p] a = Pad(x, amounts) [q] b = Pad(a, amounts) [target] y = Conv(b, w) }"
    source = model(text, {"w": normal(3, 2, 3, 3), "amounts": np.array(ONES)})
    source.graph.output[0].type.tensor_type.ClearField("shape")
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert nodes_as_text(result) == ["[target] y = Conv<pads=[2, 2, 2, 2]>(x, float[3, 2, 3, 3])"]
    assert set(state.gone) == {"p", "q"}
    assert_same_numbers(source, result, rtol=1e-6)


def amounts_of(axes):
    return st.lists(st.integers(0, 3), min_size=2 * axes, max_size=2 * axes)


@given(data=st.data(), axes=st.integers(1, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_convolution_computes_the_same_and_has_no_pad_before_it(data, axes):
    draw = data.draw
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    group = draw(st.sampled_from([1, 2]))
    attributes = {
        "kernel_shape": draw(st.sampled_from([None, kernel])),
        "strides": draw(st.none() | st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
        "dilations": draw(st.none() | st.lists(st.integers(1, 2), min_size=axes, max_size=axes)),
        "group": group if group > 1 else None,
    }
    auto_pad = draw(st.sampled_from([None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto_pad in (None, "NOTSET"):
        attributes["pads"] = draw(st.none() | amounts_of(axes))
    elif auto_pad != "VALID":
        attributes["dilations"] = None  # onnxruntime does not run both
    added = draw(amounts_of(axes))
    amounts = np.array([0, 0, *added[:axes], 0, 0, *added[axes:]])
    text = ", ".join(f"{name} = {value}" for name, value in attributes.items() if value is not None)
    text += f'{", " if text and auto_pad else ""}auto_pad = "{auto_pad}"' if auto_pad else ""
    weights = {"w": normal(4, 4 // group, *kernel), "amounts": amounts}
    shape = ", ".join(["2", "4", *["7"] * axes])
    source = source_of(
        "Pad(x, amounts)", f"Conv<{text}>(p, w)" if text else "Conv(p, w)", weights, inputs=f"float[{shape}] x"
    )
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    folded = "pad" in state.gone
    assert folded == (auto_pad in (None, "NOTSET", "VALID"))
    assert_as_unoptimized(source, result, rtol=1e-5, optimize=(False, folded))


@given(data=st.data(), axes=st.integers(1, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_pooling_computes_the_same(data, axes):
    draw = data.draw
    kernel = draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    attributes = {
        "kernel_shape": kernel,
        "strides": draw(st.none() | st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
        "ceil_mode": draw(st.sampled_from([None, 0, 1])),
        "count_include_pad": draw(st.sampled_from([None, 0, 1])),
    }
    auto_pad = draw(st.sampled_from([None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    own = [0] * (2 * axes)
    if auto_pad in (None, "NOTSET"):
        attributes["pads"] = draw(st.none() | amounts_of(axes))
        own = attributes["pads"] or own
        assume(all(pad < size for pad, size in zip(own, [*kernel, *kernel], strict=True)))
    elif auto_pad != "VALID":
        attributes["strides"] = None  # one larger than the kernel makes onnxruntime's paddings negative
    added = draw(amounts_of(axes))
    amounts = np.array([0, 0, *added[:axes], 0, 0, *added[axes:]])
    text = ", ".join(f"{name} = {value}" for name, value in attributes.items() if value is not None)
    text += f', auto_pad = "{auto_pad}"' if auto_pad else ""
    shape = ", ".join(["2", "3", *["7"] * axes])
    source = source_of("Pad(x, amounts)", f"AveragePool<{text}>(p)", {"amounts": amounts}, inputs=f"float[{shape}] x")
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    if "pad" in state.gone:
        pads = next(list(a.ints) for a in result.graph.node[0].attribute if a.name == "pads")
        assert pads == [a + b for a, b in zip(own, added, strict=True)]
        assert all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=True))
    assert_as_unoptimized(source, result, rtol=1e-5, optimize=(False, "pad" in state.gone))


# What stays


@pytest.mark.parametrize(
    ("pad", "weights"),
    [
        ('Pad<mode = "reflect">(x, amounts)', {}),
        ('Pad<mode = "edge">(x, amounts)', {}),
        ("Pad(x, amounts, one)", {"one": np.float32(1)}),
        ("Pad(x, amounts, tiny)", {"tiny": np.float32(1e-30)}),
        ("Pad(x, amounts, minus)", {"minus": np.float32(-np.inf)}),
        ("Pad(x, crop)", {"crop": np.array([0, 0, -1, 0, 0, 0, 0, 0])}),
        ("Pad(x, both)", {"both": np.array([0, 0, 2, 1, 0, 0, -1, 1])}),
    ],
    ids=["reflect", "edge", "ones", "almost zeros", "-inf", "cut off", "added and cut off"],
)
@pytest.mark.parametrize("target", ["Conv(p, w)", "AveragePool<kernel_shape = [3, 3]>(p)"])
def test_what_adds_no_zeros_stays(pad, weights, target):
    check_left_alone(source_of(pad, target, weights))


def test_a_pad_of_the_batch_stays():
    check_left_alone(source_of("Pad(x, batch)", "Conv(p, w)", {"batch": np.array([1, 0, 0, 0, 0, 0, 0, 0])}))


@pytest.mark.parametrize("place", [1, 5])
def test_a_pad_of_the_channels_stays(place):
    amounts = np.zeros(8, np.int64)
    amounts[place] = 1
    check_left_alone(source_of("Pad(x, amounts)", "Conv(p, w)", {"amounts": amounts, "w": normal(3, 3, 3, 3)}))


@pytest.mark.parametrize("call", ["Pad(x, free)", "Pad(x, amounts, value)"])
def test_a_pad_whose_parameters_are_computed_at_run_time_stays(call):
    inputs = "float[1, 2, 6, 6] x, int64[8] free, float value"
    source = source_of(call, "Conv(p, w)", {}, inputs=inputs)
    check_left_alone(source, {"x": normal(1, 2, 6, 6), "free": np.array(ONES), "value": np.array(0, np.float32)})


def test_a_pad_of_some_axes_stays_or_folds_to_the_same_numbers():
    weights = {"some": np.array([1, 2, 3, 0]), "axes": np.array([2, -1])}
    source = source_of("Pad(x, some, zero, axes)", "Conv(p, w)", weights, opset=18)
    _, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert_same_numbers(source, result, rtol=1e-6)


def test_a_pad_of_the_weight_stays():
    source = source_of("Pad(w, amounts)", "Conv(x, p)", {"w": normal(3, 2, 1, 1)})
    check_left_alone(source)


def test_a_pad_that_is_read_twice_stays():
    check_left_alone(
        source_of("Pad(x, amounts)", "Conv(p, w)", {}, outputs="float y, float z", rest="[other] z = Neg(p)")
    )


def test_a_pad_that_two_convolutions_read_stays():
    source = source_of("Pad(x, amounts)", "Conv(p, w)", {}, outputs="float y, float z", rest="[second] z = Conv(p, w)")
    check_left_alone(source)


def test_a_pad_that_is_an_output_stays():
    check_left_alone(source_of("Pad(x, amounts)", "Conv(p, w)", {}, outputs="float y, float p"))


def test_a_pad_that_a_body_reads_too_stays():
    inputs, outputs = "float[1, 2, 6, 6] x, bool c", "float y, float z"
    rest = (
        "[if] z = If(c)<then_branch = t () => (float u) { u = Neg(p) }, else_branch = e () => (float v) { v = Abs(p) }>"
    )
    source = source_of("Pad(x, amounts)", "Conv(p, w)", {}, inputs=inputs, outputs=outputs, rest=rest)
    for attribute in source.graph.node[2].attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    check_left_alone(source, {"x": normal(1, 2, 6, 6), "c": np.array(True)})


@pytest.mark.parametrize(
    "target",
    [
        "ConvTranspose(p, w)",
        "MaxPool<kernel_shape = [3, 3]>(p)",
        "Relu(p)",
        'Conv<auto_pad = "SAME_UPPER">(p, w)',
        'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(p, w)',
        'AveragePool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(p)',
        "AveragePool<kernel_shape = [3, 3], ceil_mode = 1, strides = [2, 2]>(p)",
        "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p)",
        "AveragePool<kernel_shape = [3, 3], pads = [0, 0, 0, 1], count_include_pad = 0>(p)",
        "AveragePool<kernel_shape = [1, 3]>(p)",
        "AveragePool<kernel_shape = [3, 3], pads = [0, 0, 0, 2], count_include_pad = 1>(p)",
    ],
)
def test_a_pad_before_what_cannot_take_it_stays(target):
    check_left_alone(source_of("Pad(x, amounts)", target, {"w": normal(2, 2, 3, 3)}))


def test_a_pad_before_a_convolution_with_a_computed_weight_stays():
    check_left_alone(source_of("Pad(x, amounts)", "Conv(p, k)", {}, inputs="float[1, 2, 6, 6] x, float[3, 2, 3, 3] k"))


def test_a_pad_of_another_domain_stays():
    source = source_of("Pad(x, amounts)", "Conv(p, w)", {})
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}


def test_a_convolution_of_another_domain_takes_no_pad():
    source = source_of("Pad(x, amounts)", "Conv(p, w)", {})
    source.graph.node[1].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, result = rewritten(source, NAME_NODES, FOLD_PADS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}
