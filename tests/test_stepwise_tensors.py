"""Step by step: single tensors, joint scales, products of activations, 4-bit weights and 16-bit activations."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from stepwise_flow import LOOPS, Files, run_all

import amct_onnx as amct

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(6)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


CONVS = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y, float[2, 4, 8, 8] z) {
      [a] t1 = Conv <pads = [1, 1, 1, 1]> (x, w)
      [b] t2 = Conv (x, u)
      [both] t3 = Add (t1, t2)
      [relu] y = Relu (t3)
      [shortcut] z = Add (t3, x)
    }
    """,
    {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 1, 1) * np.float32(20)},
)
PRODUCTS = model(
    """
    g (float[2, 3, 5, 8] x, float[2, 3, 8, 5] k) => (float[2, 3, 5, 4] y) {
      [scores] s = MatMul (x, k)
      [shares] p = Softmax <axis = -1> (s)
      [mix] m = MatMul (p, s)
      [out] y = MatMul (m, w)
    }
    """,
    {"w": normal(5, 4)},
)
OVERRIDE = 'override_layer_configs {{ layer_name: "{}" calibration_config {{ {} }} }}'
CASES = {
    "joint": (CONVS, "joint_quant: true"),
    "tensors": (
        CONVS,
        'tensor_quantize { layer_name: "shortcut" input_index: 1 hfmg_quantize { } }'
        'tensor_quantize { layer_name: "both" input_index: 0 ifmr_quantize { } }',
    ),
    "products": (PRODUCTS, " ".join(OVERRIDE.format(name, "arq_quantize { }") for name in ("scores", "mix"))),
    "wide": (CONVS, OVERRIDE.format("a", "ifmr_quantize { dst_type: INT16 }")),
    "narrow": (CONVS, OVERRIDE.format("a", "arq_quantize { quant_bits: 4 }")),
}


@pytest.mark.parametrize(("case", "loop"), list(zip(CASES, ["AMCT_SO", "calibration_session"] * 3, strict=False)))
def test_record_and_models_are_those_of_quantize_onnx(tmp_path, case, loop):
    net, cfg = CASES[case]
    onnx.save(net, tmp_path / "net.onnx")
    (tmp_path / "quant.cfg").write_text(f"batch_num: 3 {cfg}")
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in net.graph.input}
    feeds = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(3)]
    files = Files(tmp_path / "flow", tmp_path / "net.onnx")
    run_all(files, feeds, LOOPS[loop], cfg=tmp_path / "quant.cfg")
    result = amct.quantize_onnx(files.model, files.config, calibration=feeds)
    assert Path(files.record).read_text() == result.record
    assert onnx.load(f"{files.save_path}_deploy_model.onnx") == result.deploy_model
    assert onnx.load(f"{files.save_path}_fake_quant_model.onnx") == result.fake_quant_model


def test_where_every_layer_sees_nan_there_is_an_error(tmp_path):
    net, cfg = CASES["products"]
    onnx.save(net, tmp_path / "net.onnx")
    (tmp_path / "quant.cfg").write_text(cfg)
    feeds = [{"x": normal(2, 3, 5, 8), "k": np.full((2, 3, 8, 5), np.nan, np.float32)}]
    files = Files(tmp_path / "flow", tmp_path / "net.onnx")
    with pytest.raises(amct.RecordError, match="calibration failed: no layer has an input that anything could be"):
        run_all(files, feeds, LOOPS["calibration_session"], cfg=tmp_path / "quant.cfg")
