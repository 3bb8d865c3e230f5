"""The DPU's rules on the positions of neighbours."""

import numpy as np
import pytest
from graphs import model

from amct_onnx.kernels.grid import Grid
from amct_onnx.passes.align_positions import ALIGN_POSITIONS
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.state import QuantPlan, QuantState


def grid(position):
    return Grid(
        scale=np.asarray(2.0**-position),
        zero_point=np.asarray(0),
        low=-128,
        high=127,
        round_mode="half_up",
        num_bits=8,
    )


def aligned(nodes, positions, weight=None, bias=None, outputs="float y", **plan):
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), "b": np.ones(4, np.float32)} if "w" in nodes else {}
    source = model(f"g (float[1, 4, 4, 4] x) => ({outputs}) {{ {nodes} }}", weights)
    state = QuantState(graph=Graph.of_model(source), plan=QuantPlan(**{"dpu_shifts": True, **plan}))
    state.grids.update({name: grid(p) for name, p in positions.items()})
    if weight is not None:
        state.weight_grids["c"] = grid(weight)
    if bias is not None:
        state.bias_grids["c"] = grid(bias)
    run_passes([ALIGN_POSITIONS], state)
    found = {name: round(-np.log2(float(g.scale))) for name, g in state.grids.items()}
    for name, column in (("w", state.weight_grids), ("b", state.bias_grids)):
        found |= {name: round(-np.log2(float(column["c"].scale)))} if column else {}
    return found


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"x": 1, "y": 6, "w": 1, "b": 5}, {"y": 2, "b": 2}),
        ({"x": 10, "y": 2, "w": 12, "b": 8}, {"w": 8}),
        ({"x": 7, "y": 5, "w": 7, "b": 8}, {}),
    ],
)
def test_shifts_stay_within_reach(given, wanted):
    from amct_onnx.kernels.dpu import LayerPositions, shifted_within_reach

    found = aligned("[c] h = Conv(x, w, b) [r] y = Relu(h)", {"x": given["x"], "y": given["y"]}, given["w"], given["b"])
    kernel = shifted_within_reach(
        LayerPositions(input=given["x"], weight=given["w"], output=given["y"], bias=given["b"])
    )
    assert found == {"x": kernel.input, "y": kernel.output, "w": kernel.weight, "b": kernel.bias}
    assert 0 <= found["x"] + found["w"] - found["y"] <= 16
    for name, position in wanted.items():
        if name != "b":
            assert found[name] == position


def test_cpu_positions_stay():
    nodes = "[c] h = Conv(x, w, b) [r] y = Relu(h)"
    assert aligned(nodes, {"x": 1, "y": 6}, 1, 5, dpu_shifts=False) == {"x": 1, "y": 6, "w": 1, "b": 5}


def test_concatenations_and_poolings_give_their_inputs_their_position_where_asked_for():
    nodes = "[a] h = Sqrt(x) [p] k = MaxPool<kernel_shape = [1, 1]>(x) [cc] y = Concat<axis = 1>(h, k)"
    given = {"x": 1, "h": 2, "k": 3, "y": 4}
    assert aligned(nodes, given) == given
    assert aligned(nodes, given, align_concat=True) == {**given, "h": 4, "k": 4}
    assert aligned(nodes, given, align_concat=True, align_pool=True) == {**given, "h": 4, "k": 4, "x": 4}


def test_paddings_and_nearest_sizes_keep_the_position_of_their_input():
    source = "[p] y = Pad(x, pads) [r] z = Resize(x, , scales)"
    constants = {"pads": np.zeros(8, np.int64), "scales": np.ones(4, np.float32)}
    made = model(f"g (float[1, 4, 4, 4] x) => (float y, float z) {{ {source} }}", constants)
    state = QuantState(graph=Graph.of_model(made))
    state.grids.update({"x": grid(3), "y": grid(5), "z": grid(6)})
    run_passes([ALIGN_POSITIONS], state)
    assert {name: float(g.scale) for name, g in state.grids.items()} == dict.fromkeys("xyz", 0.125)


@pytest.mark.parametrize(
    ("op", "given", "wanted"),
    [
        ("HardSigmoid", {"x": -2, "y": 5}, {"x": 0, "y": 7}),
        ("HardSigmoid", {"x": 3, "y": 8}, {"x": 3, "y": 8}),
        ("HardSwish", {"x": -2, "y": 9}, {"x": 0, "y": 7}),
        ("HardSwish", {"x": 3, "y": 5}, {"x": 3, "y": 5}),
    ],
)
def test_hard_activations(op, given, wanted):
    weights = {}
    made = model(f"g (float[1, 4] x) => (float y) {{ [a] y = {op}(x) }}", weights, opset=14)
    state = QuantState(graph=Graph.of_model(made), plan=QuantPlan(dpu_shifts=True))
    state.grids.update({name: grid(p) for name, p in given.items()})
    run_passes([ALIGN_POSITIONS], state)
    assert {name: round(-np.log2(float(g.scale))) for name, g in state.grids.items()} == wanted
