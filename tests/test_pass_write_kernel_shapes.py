"""write kernel shapes: where the weight alone told them."""

import numpy as np
import pytest
from graphs import assert_same_numbers, model, nodes_as_text, rewritten

from amct_onnx.passes.fold_constants import FOLD_CONSTANTS
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.write_kernel_shapes import WRITE_KERNEL_SHAPES

STEPS = (NAME_NODES, FOLD_CONSTANTS, WRITE_KERNEL_SHAPES)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (1, 2, 3)])
def test_a_missing_kernel_shape_is_written_down(op, kernel):
    dims = ", ".join(["1", "2", *["5"] * len(kernel)])
    text = f"g (float[{dims}] x) => (float y) {{ [n] y = {op}(x, w) }}"
    source = model(text, {"w": np.random.default_rng(0).normal(size=(2, 2, *kernel)).astype(np.float32)})
    _, result = rewritten(source, *STEPS)
    assert nodes_as_text(result)[0].startswith(f"[n] y = {op}<kernel_shape={list(kernel)}>(")
    assert_same_numbers(source, result, rtol=0)


def test_what_stands_there_stays():
    text = "g (float[1, 2, 5] x) => (float y) { [n] y = Conv<pads=[1, 1], kernel_shape=[3]>(x, w) }"
    source = model(text, {"w": np.ones((2, 2, 3), np.float32)})
    assert nodes_as_text(rewritten(source, *STEPS)[1]) == nodes_as_text(source)


def test_a_weight_that_is_computed_tells_nothing():
    source = model("g (float[1, 2, 5] x, float[2, 2, 3] w) => (float y) { [n] y = Conv(x, w) }")
    assert nodes_as_text(rewritten(source, *STEPS)[1]) == nodes_as_text(source)
