"""Every form that is not 8 bits around one weight, in everything that reads or writes models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import assert_close, initializers, model, run, sqnr
from naive_deploy import run_deploy

from amct_onnx import (
    Arq,
    Dmq,
    Hfmg,
    Ifmr,
    LayerConfig,
    NotAvailableError,
    Nuq,
    TensorConfig,
    convert_model,
    import_qdq,
    quantize_onnx,
    verify_deploy_model,
)
from amct_onnx.deploy.profiles import PROFILES
from amct_onnx.deploy.simulate import simulated
from amct_onnx.report.agreement import agreement

RNG = np.random.default_rng(4)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


SOURCE = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 6, 7, 7] y, float[2, 8, 8] s, float[2, 5] z) {
      [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      [side] d = Conv (x, u)
      [add] a = Add (c, d)
      [pool] y = MaxPool <kernel_shape = [2, 2]> (a)
      [rows] q = Reshape (c, rows_shape)
      [columns] k = Transpose <perm = [0, 2, 1]> (q)
      [product] s = MatMul (q, k)
      [peak] m = MaxPool <kernel_shape = [8, 8]> (a)
      [flat] f = Flatten (m)
      [hidden] h = MatMul (f, v)
      [relu] r = Relu (h)
      [fc] z = Gemm (r, t, e)
    }
    """,
    {
        "w": normal(6, 4, 3, 3),
        "b": normal(6),
        "u": normal(6, 4, 1, 1) * np.float32(3),
        "rows_shape": np.array([2, 8, 48]),
        "v": normal(6, 8),
        "t": normal(8, 5),
        "e": normal(5),
    },
)
FEEDS = [{"x": normal(2, 4, 8, 8)} for _ in range(3)]
FORMS = {
    "16-bit activations": {"common_config": LayerConfig(activation=Ifmr(num_bits=16))},
    "4-bit weights": {"common_config": LayerConfig(weight=Arq(num_bits=4))},
    "6-bit weights": {"common_config": LayerConfig(weight=Arq(num_bits=6))},
    "single tensors": {
        "tensor_quantize": [
            TensorConfig(layer_name="add", input_index=1, activation=Ifmr(asymmetric=True)),
            TensorConfig(layer_name="pool", input_index=0, activation=Hfmg()),
        ]
    },
    "joint scales": {"joint_quant": True},
    "balanced layers": {"common_config": LayerConfig(balancer=Dmq()), "balance_batches": 1},
    "balanced 4-bit weights": {
        "common_config": LayerConfig(weight=Arq(num_bits=4), balancer=Dmq()),
        "balance_batches": 1,
    },
    "few integers": {"common_config": LayerConfig(weight=Nuq(num_steps=16))},
    "products": {"override_layer_configs": {"product": LayerConfig()}},
}
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt")


@pytest.fixture(scope="module", params=FORMS)
def made(request, tmp_path_factory):
    """The name of the form, the folder with the files, and the result."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(SOURCE, folder / "net.onnx")
    asked = {"correct_biases": False} | FORMS[request.param]  # what was corrected stands in no record
    result = quantize_onnx(SOURCE, calibration=FEEDS, save_path=folder / "a", qdq=True, **asked)
    return request.param, folder, result


def read(path: Path) -> dict[str, bytes]:
    return {name: path.with_name(f"{path.name}_{name}").read_bytes() for name in FILES}


def test_the_form_is_there(made):
    form, folder, result = made
    ops = [node.op_type for node in onnx.load(folder / "a_deploy_model.onnx").graph.node]
    counts = {
        "16-bit activations": result.params["conv"].activation.num_bits == 16,
        "4-bit weights": result.params["hidden"].weight.num_bits == 4,
        "6-bit weights": result.params["side"].weight.num_bits == 6,
        "single tensors": ops.count("AscendAntiQuant") == 2,
        "joint scales": ops.count("AscendAntiQuant") == 2,
        "balanced layers": ops.count("Mul") == 4,
        "balanced 4-bit weights": ops.count("Mul") == 4 and result.params["fc"].weight.num_bits == 4,
        "few integers": len(np.unique(initializers(onnx.load(folder / "a_deploy_model.onnx"))["w"])) <= 16,
        "products": ops.count("AscendDequant") == 5,
    }
    assert counts[form]


def test_the_rules_know_it(made):
    form, folder, _ = made
    for record in (None, folder / "a_record.txt"):
        report = verify_deploy_model(folder / "a_deploy_model.onnx", record=record, float_model=SOURCE)
        assert report.errors == ()
        warned = {finding.rule for finding in report.warnings} - {29}  # few input channels
        assert warned == ({32} if "4-bit" in form else {25} if form == "products" else set())


@pytest.mark.parametrize("profile", PROFILES)
def test_the_simulation_is_that_of_plain_integers(made, profile):
    form, folder, _ = made
    deploy = onnx.load(folder / "a_deploy_model.onnx")
    if form == "16-bit activations":
        with pytest.raises(NotAvailableError, match=r"AscendQuant 'conv\.quant' gives INT16: how the chip adds up"):
            simulated(deploy, profile)
        return
    light = simulated(deploy, profile).whole()
    expected = run_deploy(deploy, FEEDS[0], profile)
    for optimize in (False, True):
        found = run(light, FEEDS[0], optimize=optimize)
        for name, values in expected.items():
            rtol = 1e-5 if name == "s" and form != "products" else 0  # of floats
            assert_close(found[name], values, rtol=rtol)


def test_the_record_gives_the_same_files(made):
    _, folder, _ = made
    convert_model(folder / "net.onnx", folder / "a_record.txt", save_path=folder / "b", data=FEEDS)
    assert read(folder / "b") == read(folder / "a")


def test_the_configuration_gives_the_same_files(made):
    _, folder, _ = made
    quantize_onnx(folder / "net.onnx", folder / "a_config.json", calibration=FEEDS, save_path=folder / "c")
    assert read(folder / "c") == read(folder / "a")
    assert (folder / "c_config.json").read_bytes() == (folder / "a_config.json").read_bytes()


def test_the_qdq_model_computes_the_same(made):
    _, folder, _ = made
    fake, qdq = (onnx.load(folder / f"a_{kind}_model.onnx") for kind in ("fake_quant", "qdq"))
    wanted = run(fake, FEEDS[1])
    for optimize in (False, True):
        found = run(qdq, FEEDS[1], optimize=optimize)
        for name, values in wanted.items():
            assert sqnr(values, found[name]) > 60, (name, optimize)


def test_the_qdq_model_comes_in_again(made):
    form, folder, result = made
    again = import_qdq(folder / "a_qdq_model.onnx", data=FEEDS)
    assert list(again.plan.layers) == list(result.plan.layers)
    assert again.plan.tensors == ()  # pairs that are in front of no layer are not kept
    for name in result.plan.layers:
        mine, wanted = again.params[name], result.params[name]
        assert (mine.activation.scale, mine.activation.offset) == (wanted.activation.scale, wanted.activation.offset)
        assert mine.activation.num_bits == wanted.activation.num_bits
        if wanted.weight is not None:
            np.testing.assert_array_equal(mine.weight.scale, wanted.weight.scale)
    if form == "4-bit weights":
        fake = initializers(onnx.load(folder / "a_fake_quant_model.onnx"))
        np.testing.assert_array_equal(initializers(again.deploy_model)["v"], fake["v"])


def test_float_fake_quant_and_chips_are_compared(made):
    form, folder, result = made
    models = [folder / "net.onnx", folder / "a_fake_quant_model.onnx", folder / "a_deploy_model.onnx"]
    if form == "16-bit activations":
        with pytest.raises(NotAvailableError, match=r"conv\.quant"):
            agreement(*models, FEEDS)
        return
    found = agreement(*models, FEEDS)
    assert {layer.layer for layer in found.layers} == set(result.plan.layers)
    assert found.skipped == ()
    assert found.parting("ideal") is None
