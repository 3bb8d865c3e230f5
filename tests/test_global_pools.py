"""GlobalAveragePool as an AveragePool of fixed size: only where it is asked for, and where the size is known."""

import numpy as np
import pytest
from graphs import assert_same_numbers, model, nodes_as_text, rewritten, run, sqnr

from amct_onnx import LayerConfig, RecordError, SimulatedSession, convert_model, quantize_onnx, verify_deploy_model
from amct_onnx.passes.fix_global_pools import fix_global_pools

RNG = np.random.default_rng(31)
TEXT = """
g (float[2, 3, {height}, {width}] x) => (float[2, 5] y) {{
  [conv] c = Conv (x, w)
  [pool] p = GlobalAveragePool (c)
  [flat] f = Flatten (p)
  [fc] y = Gemm (f, k, b)
}}
"""
WEIGHTS = {
    "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "k": RNG.normal(size=(4, 5)).astype(np.float32),
    "b": RNG.normal(size=5).astype(np.float32),
}
NETWORK = model(TEXT.format(height=9, width=7), WEIGHTS)
FREE = model(TEXT.format(height="H", width=7), WEIGHTS)
FEEDS = [{"x": RNG.normal(size=(2, 3, 9, 7)).astype(np.float32)} for _ in range(3)]


def test_the_rewrite_computes_the_same():
    state, after = rewritten(NETWORK, fix_global_pools())
    assert "[pool] p = AveragePool<kernel_shape=[7, 5]>(c)" in nodes_as_text(after)
    assert_same_numbers(NETWORK, after, rtol=1e-6)
    assert state.remarks == {}
    _, untouched = rewritten(NETWORK, fix_global_pools({"conv"}))
    assert nodes_as_text(untouched) == nodes_as_text(NETWORK)


def test_it_is_quantized_where_it_is_asked_for(tmp_path):
    plain = quantize_onnx(NETWORK, calibration=FEEDS)
    assert "global_pools=True" in plain.plan.skipped["pool"]
    result = quantize_onnx(NETWORK, calibration=FEEDS, global_pools=True, qdq=True, correct_biases=False)
    assert list(result.plan.layers) == ["conv", "pool", "fc"]
    lines = nodes_as_text(result.deploy_model)
    assert any(line.startswith("[pool] p_output0 = AveragePool") or "AveragePool<kernel" in line for line in lines)
    assert verify_deploy_model(result.deploy_model).errors == ()
    expected = run(NETWORK, FEEDS[1])["y"]
    assert sqnr(expected, run(result.fake_quant_model, FEEDS[1])["y"]) > 30
    found = SimulatedSession(result.deploy_model).run(None, FEEDS[1])[0]
    assert sqnr(run(result.fake_quant_model, FEEDS[1])["y"], found) > 40
    (tmp_path / "record.txt").write_text(result.record)
    again = convert_model(NETWORK, tmp_path / "record.txt")
    assert nodes_as_text(again.deploy_model) == nodes_as_text(result.deploy_model)
    (tmp_path / "config.json").write_text(result.config)
    repeated = quantize_onnx(NETWORK, tmp_path / "config.json", calibration=FEEDS, global_pools=True, wide_fusion=True)
    assert repeated.record == result.record


def test_an_override_applies_to_it():
    block = LayerConfig()
    result = quantize_onnx(NETWORK, calibration=FEEDS, global_pools=True, override_layer_types={"AvgPool2d": block})
    assert "pool" in result.plan.layers
    off = quantize_onnx(NETWORK, calibration=FEEDS, global_pools=True, skip_layer_types=["AveragePool"])
    assert "pool" not in off.plan.layers


def test_a_plane_of_unknown_size_stays_global(tmp_path):
    result = quantize_onnx(FREE, calibration=FEEDS, global_pools=True)
    assert list(result.plan.layers) == ["conv", "fc"]
    assert "height and width of its input are not known" in result.plan.skipped["pool"]
    (tmp_path / "record.txt").write_text(quantize_onnx(NETWORK, calibration=FEEDS, global_pools=True).record)
    with pytest.raises(RecordError, match="record of 'pool': GlobalAveragePool cannot be quantized"):
        convert_model(FREE, tmp_path / "record.txt", data=FEEDS)
