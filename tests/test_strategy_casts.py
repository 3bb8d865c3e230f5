"""Strategies with float types: values are cast where integers would be, and nothing is searched for."""

import json

import numpy as np
import pytest
from graphs import initializers, run
from test_strategy import BLOCK, CPU, DPU, W, feeds, graph

from amct_onnx import quantize_onnx
from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.kernels.cast import cast_through


def with_kinds(strategy, **kinds):
    sections = {kind: {"datatype": datatype} for kind, datatype in kinds.items()}
    return {**strategy, "tensor_quantize_config": sections}


@pytest.mark.parametrize("datatype", ["float16", "bfloat16"])
def test_everything_goes_through_a_float_type(datatype):
    source, data = graph("[c] h = Conv(x, v, b) [r] y = Relu(h)"), feeds()
    strategy = {**DPU, "overall_quantize_config": {"datatype": datatype}}
    result = quantize_onnx(source, strategy, calibration=data, qdq=True)
    x, v, b = (cast_through(values, datatype) for values in (data[0]["x"], W["v"], W["b"]))
    wanted = np.maximum(np.einsum("oi,nihw->nohw", v[:, :, 0, 0], x) + b.reshape(1, -1, 1, 1), 0)
    for form in (result.fake_quant_model, result.qdq_model):
        np.testing.assert_array_equal(initializers(form)["v"], v)
        for optimize in (False, True):
            found = run(form, data[0], optimize=optimize)["y"]
            np.testing.assert_array_equal(found, cast_through(found, datatype))
            np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)
    assert json.loads(result.quant_info)["dtype"] == {"v": datatype, "b": datatype, "x": datatype, "y": datatype}
    assert result.deploy_model is None
    assert datatype in result.plan.notes["c"][0]
    again = quantize_onnx(source, json.loads(result.config), calibration=data)
    assert again.quant_info == result.quant_info


def test_one_layer_stays_float_among_integers():
    rule = {"layer_name": "d", "quantizable_data_type": ["weights", "bias", "activation"]}
    rule["overall_quantize_config"] = {"datatype": "float32"}
    result = quantize_onnx(
        graph(BLOCK), {**CPU, "layer_quantize_config": [rule]}, calibration=feeds(), qdq=True, measure_layers=True
    )
    info = json.loads(result.quant_info)
    assert info["dtype"] == {"v": "float32", "b": "float32", "l": "float32"}
    assert sorted(info["param"]) == ["c.bias", "m", "n", "w"]
    for form in (result.fake_quant_model, result.qdq_model):
        np.testing.assert_array_equal(initializers(form)["v"], W["v"])
    assert sorted(result.params) == ["c", "l"]
    assert "its weight is float32" in result.plan.notes["d"][0]


def test_weights_alone_can_be_integers():
    source = graph(BLOCK)
    result = quantize_onnx(source, with_kinds(CPU, activation="float32", input="float32"), calibration=feeds())
    assert json.loads(result.quant_info)["output"] == {}
    assert not any(node.op_type == "Round" for node in result.fake_quant_model.graph.node)
    with pytest.raises(NotAvailableError, match="'c': its input is float32"):
        quantize_onnx(source, with_kinds(CPU, activation="float32"), calibration=feeds(), deploy=True)


def test_float_types_align_nothing():
    source = graph("[c] h = Conv(x, v) [e] i = Conv(h, v) [cc] y = Concat<axis = 1>(h, i)")
    data = feeds()
    for strategy, aligned in ((DPU, True), (with_kinds(DPU, weights="float16"), False)):
        result = quantize_onnx(source, {**strategy, "change_concat_input_fix": True}, calibration=data)
        info = json.loads(result.quant_info)["output"]
        assert (info["h"] == info["y"]) == aligned


def test_bfloat16_needs_an_opset_that_has_it():
    source = graph("[c] y = Conv(x, v)", opset=11)
    with pytest.raises(NotAvailableError, match="'bfloat16' needs opset 13, the model has 11"):
        quantize_onnx(source, with_kinds(CPU, weights="bfloat16"), calibration=feeds())
    quantize_onnx(source, with_kinds(CPU, weights="float16", activation="float16"), calibration=feeds())


def test_a_fake_quant_model_is_not_quantized_again():
    result = quantize_onnx(graph(BLOCK), CPU, calibration=feeds())
    with pytest.raises(ModelError, match="quantized already"):
        quantize_onnx(result.fake_quant_model, CPU, calibration=feeds())
