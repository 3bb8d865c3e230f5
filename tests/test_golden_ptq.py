"""Equality with what the real AMCT made of small networks: the definition of right."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import run
from onnx import helper, numpy_helper

from amct_onnx import quantize_onnx, verify_deploy_model
from amct_onnx.formats.record import parse_record, read_record

GOLDEN = Path(__file__).parent / "golden" / "ptq"
ROUNDED = GOLDEN / "residual_ada"
CASES = sorted(path.parent for path in GOLDEN.glob("*/model.onnx") if path.parent != ROUNDED)
REWRITTEN = ("Mul", "AscendQuant", "AscendDequant", "Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")


def feeds(case):
    data = np.load(case / "calibration.npz")
    batches = max(int(key.rsplit("_", 1)[1]) for key in data.files) + 1
    names = sorted({key.rsplit("_", 1)[0] for key in data.files})
    return [{name: data[f"{name}_{batch}"] for name in names} for batch in range(batches)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    result = quantize_onnx(request.param / "model.onnx", request.param / "quant.cfg", calibration=feeds(request.param))
    return request.param, result


@pytest.fixture(scope="module")
def deploys(case):
    return case[1].deploy_model, onnx.load(case[0] / "amct_deploy_model.onnx")


def constants(model):
    """Initializers, and Constant nodes, which AMCT uses for some of them."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return found | {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant"
    }


def rewritten_nodes(model):
    """By name: AMCT exported the torch network anew, which may order independent branches otherwise."""
    return sorted((node for node in model.graph.node if node.op_type in REWRITTEN), key=lambda node: node.name)


def test_every_case_but_those_of_other_algorithms_is_here():
    assert len(CASES) == 13


def test_record_has_the_same_layers_scales_and_offsets(case):
    ours, theirs = parse_record(case[1].record, "ours"), read_record(case[0] / "record.txt")
    assert set(ours) == set(theirs)
    for layer, record in theirs.items():
        assert ours[layer].scale_d == pytest.approx(record.scale_d, rel=1e-5), layer
        assert ours[layer].scale_w == pytest.approx(record.scale_w, rel=1e-5), layer
        for field in ("offset_d", "offset_w", "act_type", "wts_type"):
            assert getattr(ours[layer], field) == getattr(record, field), (layer, field)


def test_record_has_the_same_balance_factors(case):
    ours, theirs = parse_record(case[1].record, "ours"), read_record(case[0] / "record.txt")
    for layer, record in theirs.items():
        found, wanted = (np.array(r.tensor_balance_factor) for r in (ours[layer], record))
        assert found.shape == wanted.shape, layer
        # A channel that is all but switched off by the Relu in front has the noise of float32 in its largest value.
        np.testing.assert_allclose(found, wanted, rtol=1e-4, err_msg=layer)
        assert np.isclose(found, wanted, rtol=1e-5).sum() >= 0.995 * wanted.size, layer


def test_config_is_the_same_byte_for_byte(case):
    assert case[1].config == (case[0] / "config.json").read_text()


def test_deploy_model_has_the_same_nodes(deploys):
    ours, theirs = ([(n.op_type, n.name) for n in rewritten_nodes(model)] for model in deploys)
    assert ours == theirs


def test_deploy_nodes_have_the_same_attributes_of_the_same_types(deploys):
    for ours, theirs in zip(*map(rewritten_nodes, deploys), strict=True):
        wanted = {a.name: (a.type, helper.get_attribute_value(a)) for a in theirs.attribute}
        found = {a.name: (a.type, helper.get_attribute_value(a)) for a in ours.attribute}
        if "scale" in wanted:
            assert found.pop("scale")[1] == pytest.approx(wanted.pop("scale")[1], rel=1e-5)
        assert found == wanted, ours.name


def test_deploy_initializers_have_the_same_types_and_integers(deploys):
    tables = [constants(model) for model in deploys]
    compared = 0
    for ours, theirs in zip(*map(rewritten_nodes, deploys), strict=True):
        assert len(ours.input) == len(theirs.input)
        for our_name, their_name in zip(ours.input, theirs.input, strict=True):
            assert (our_name in tables[0]) == (their_name in tables[1]), ours.name
            if their_name in tables[1]:
                found, wanted = tables[0][our_name], tables[1][their_name]
                assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), ours.name
                if found.dtype == np.uint64:
                    scales = [words.astype(np.uint32).view(np.float32) for words in (found, wanted)]
                    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-5)
                    assert (found >> np.uint64(32) == 0).all()
                elif ours.op_type == "Mul":
                    np.testing.assert_allclose(found, wanted, rtol=1e-4, err_msg=ours.name)
                else:
                    np.testing.assert_array_equal(found, wanted, err_msg=ours.name)
                compared += 1
    assert compared > 10


def test_deploy_models_of_both_break_no_rule(case, deploys):
    ours, theirs = deploys
    for model, record in ((ours, parse_record(case[1].record, "ours")), (theirs, case[0] / "record.txt")):
        report = verify_deploy_model(model, record=record, float_model=case[0] / "model.onnx")
        assert report.errors == ()
        # ConvTranspose with an offset, and the few channels of small networks
        assert {finding.rule for finding in report.warnings} <= {27, 29}
        assert {entry.rule for entry in report.unchecked} <= {21, 28}
        assert report.layers > 3


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "plain"])
def test_fake_quant_outputs_are_the_same(case, optimize):
    wanted = np.load(case[0] / "outputs.npz")
    outputs = run(case[1].fake_quant_model, feeds(case[0])[0], optimize=optimize)
    for name, values in outputs.items():
        np.testing.assert_allclose(values, wanted[f"fake_quant_{name}"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def rounded():
    return quantize_onnx(ROUNDED / "model.onnx", ROUNDED / "quant.cfg", calibration=feeds(ROUNDED))


def test_learned_rounding_has_the_same_scales_and_configuration(rounded):
    ours, theirs = parse_record(rounded.record, "ours"), read_record(ROUNDED / "record.txt")
    assert set(ours) == set(theirs)
    for layer, record in theirs.items():
        assert ours[layer].scale_d == pytest.approx(record.scale_d, rel=2e-5), layer
        assert ours[layer].offset_d == record.offset_d, layer
        assert ours[layer].scale_w == pytest.approx(record.scale_w, rel=1e-6), layer
    assert rounded.config == (ROUNDED / "config.json").read_text()


def test_learned_rounding_takes_one_of_the_two_next_integers_and_leaves_other_layers_alone(rounded):
    theirs, ours = constants(onnx.load(ROUNDED / "amct_deploy_model.onnx")), constants(rounded.deploy_model)
    nodes = onnx.load(ROUNDED / "amct_deploy_model.onnx").graph.node
    names = {node.name: node.input[1] for node in nodes if len(node.input) > 1}
    for node in rounded.deploy_model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            found, wanted = ours[node.input[1]].astype(int), theirs[names[node.name]].astype(int)
            assert np.abs(found - wanted).max() <= (0 if node.name.startswith("fc") else 1), node.name


def test_learned_rounding_is_nearer_to_the_float_model_than_amct(rounded):
    batches = feeds(ROUNDED)
    errors = []
    for quantized in (rounded.fake_quant_model, onnx.load(ROUNDED / "amct_fake_quant_model.onnx")):
        pairs = [(run(quantized, feed), run(onnx.load(ROUNDED / "model.onnx"), feed)) for feed in batches]
        errors.append(sum(float(((a[name] - b[name]) ** 2).sum()) for a, b in pairs for name in b))
    assert errors[0] < 0.5 * errors[1]  # measured 0.3
