"""Grids in standard operators: what the kernel computes, to the bit, in both forms."""

import numpy as np
import pytest
from graphs import model, run

from amct_onnx.errors import NotAvailableError
from amct_onnx.kernels.grid import Grid, fake_quantized
from amct_onnx.kernels.rounding import ROUND_MODES
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.insert_grid_qdq import INSERT_GRID_QDQ
from amct_onnx.passes.insert_grids import INSERT_GRIDS
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.state import QuantState

RNG = np.random.default_rng(11)
HALVES = np.arange(-9, 10, dtype=np.float32) / 2
NEAR = np.nextafter(HALVES, np.float32(0))
VALUES = np.concatenate([HALVES, NEAR, -NEAR, RNG.normal(size=400).astype(np.float32) * 60, [0, -0.0, 1e30, -1e30]])
VALUES = VALUES.astype(np.float32)


def grid(mode="half_even", scale=1.0, zero=0, low=-128, high=127, bits=8):
    return Grid(
        scale=np.asarray(scale),
        zero_point=np.asarray(zero),
        low=low,
        high=high,
        round_mode=mode,
        num_bits=bits,
    )


def rewritten(step, text, outputs, **grids):
    source = model(f"g (float[n] x) => ({outputs}) {{ {text} }}")
    state = QuantState(graph=Graph.of_model(source))
    state.grids.update(grids)
    run_passes([step], state)
    return state.graph.to_model()


GRIDS = {
    **{mode: grid(mode) for mode in ROUND_MODES},
    **{f"{mode} at an odd scale": grid(mode, scale=0.37) for mode in ROUND_MODES},
    "zero point": grid(scale=0.5, zero=85, low=0, high=255),
    "zero point outside": grid(scale=0.5, zero=-255, low=0, high=255),
    "narrow": grid(low=-127),
    "4 bits": grid("std_round", low=-8, high=7, bits=4),
    "16 bits": grid("half_up", scale=2.0**-9, low=-32768, high=32767, bits=16),
    "zeros": grid(scale=0.0),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("optimize", [False, True])
def test_the_operators_compute_the_grid(name, optimize):
    made = rewritten(INSERT_GRIDS, "[r] y = Neg(x)", "float[n] y", x=GRIDS[name])
    found = run(made, {"x": VALUES}, optimize=optimize)["y"]
    np.testing.assert_array_equal(found, -fake_quantized(VALUES, GRIDS[name]))


@pytest.mark.parametrize("step", [INSERT_GRIDS, INSERT_GRID_QDQ], ids=["fake quant", "qdq"])
def test_every_reader_and_the_output_see_the_grid(step):
    made = rewritten(
        step, "[a] h = Neg(x) [b] y = Abs(h) [c] z = Neg(h)", "float[n] h, float[n] y, float[n] z", h=grid(scale=4.0)
    )
    assert [o.name for o in made.graph.output] == ["h", "y", "z"]
    found = run(made, {"x": VALUES})
    wanted = fake_quantized(-VALUES, grid(scale=4.0))
    for name, values in (("h", wanted), ("y", np.abs(wanted)), ("z", -wanted)):
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", ["half_even", "zero point", "narrow", "4 bits"])
def test_qdq_computes_the_grid_but_for_halves(name):
    asked = GRIDS[name]
    found = run(rewritten(INSERT_GRID_QDQ, "[r] y = Neg(x)", "float[n] y", x=asked), {"x": VALUES}, optimize=False)["y"]
    even = Grid(**{**{f: getattr(asked, f) for f in asked.__slots__}, "round_mode": "half_even"})
    np.testing.assert_array_equal(found, -fake_quantized(VALUES, even))


@pytest.mark.parametrize(
    ("name", "said"),
    [("16 bits", "tensor 'x' has 16 bits"), ("zero point outside", "tensor 'x' has zero points as far as 255")],
)
def test_what_qdq_cannot_express_is_refused(name, said):
    with pytest.raises(NotAvailableError, match=said):
        rewritten(INSERT_GRID_QDQ, "[r] y = Neg(x)", "float[n] y", x=GRIDS[name])
