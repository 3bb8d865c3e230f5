"""The flow of each of AMCT's samples, compared with `quantize_onnx` and with the real AMCT."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from stepwise_flow import LOOPS, Files, feeds_of, run_all

import amct_onnx as amct
from amct_onnx.formats.record import parse_record, read_record

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent / "golden" / "ptq"
FLOWS = [
    ("mixed_default", "AMCT_SO"),
    ("mixed_fp16_scale", "calibration_session"),
    ("mixed_hfmg", "AMCT_SO"),
    ("mixed_int7_int6", "calibration_session"),
    ("mixed_skips_overrides", "AMCT_SO"),
    ("residual_dmq", "AMCT_SO"),
    ("residual_dmq_hfmg_03", "calibration_session"),
    ("zoo_default", "AMCT_SO"),
]


@pytest.fixture(scope="module", params=FLOWS, ids="-".join)
def flow(request, tmp_path_factory):
    """The golden case, what quantize_onnx makes of it, and the files of the flow."""
    name, loop = request.param
    case, files = GOLDEN / name, Files(tmp_path_factory.mktemp(name), GOLDEN / name / "model.onnx")
    result = amct.quantize_onnx(case / "model.onnx", case / "quant.cfg", calibration=feeds_of(case))
    run_all(files, feeds_of(case), LOOPS[loop], cfg=case / "quant.cfg", dmq="dmq" in name)
    return case, result, files


def test_config_is_amcts_byte_for_byte(flow):
    case, _, files = flow
    assert Path(files.config).read_bytes() == (case / "config.json").read_bytes()


def test_record_is_that_of_quantize_onnx_byte_for_byte(flow):
    _, result, files = flow
    assert Path(files.record).read_text() == result.record


def test_record_has_amcts_factors(flow):
    case, _, files = flow
    ours, theirs = read_record(files.record), read_record(case / "record.txt")
    assert set(ours) == set(theirs)
    for layer, record in theirs.items():
        assert ours[layer].scale_d == pytest.approx(record.scale_d, rel=1e-5), layer
        assert ours[layer].scale_w == pytest.approx(record.scale_w, rel=1e-5), layer
        assert ours[layer].offset_d == record.offset_d, layer


def test_saved_models_are_those_of_quantize_onnx(flow):
    _, result, files = flow
    assert onnx.load(f"{files.save_path}_deploy_model.onnx") == result.deploy_model
    assert onnx.load(f"{files.save_path}_fake_quant_model.onnx") == result.fake_quant_model


def test_save_model_writes_amcts_files_and_no_others(flow):
    _, _, files = flow
    written = {name for name in files.outputs() if name.startswith("out/")}
    assert written == {f"out/net_{end}" for end in ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json")}


def test_quant_json_leads_every_node_back_to_the_float_model(flow):
    case, result, files = flow
    ops = {op["name"]: op for op in json.loads(Path(f"{files.save_path}_quant.json").read_text())["graph"][0]["op"]}
    float_names = {node.name for node in onnx.load(case / "model.onnx").graph.node}
    assert list(ops) == [node.name for node in result.deploy_model.graph.node]
    for layer in result.plan.layers:
        (attribute,) = ops[f"{layer}.dequant"]["attr"]
        originals = attribute["value"]["list"]["s"]
        assert originals[0] == layer
        assert set(originals) <= float_names
        (output,) = ops[f"{layer}.dequant"]["output_desc"]
        assert output["attr"][0]["value"]["s"] == originals[-1]
        assert ops[layer]["output_desc"] == [{"attr": []}]
    folded = {name for name, reason in result.plan.skipped.items() if reason.startswith("folded into")}
    known = {name for op in ops.values() for name in op["attr"][0]["value"]["list"]["s"]}
    assert folded <= known


def test_steps_in_processes_of_their_own_give_the_same(tmp_path):
    case = GOLDEN / "residual_dmq"
    apart, together = Files(tmp_path / "apart", case / "model.onnx"), Files(tmp_path / "one", case / "model.onnx")
    script = (
        "import sys; from pathlib import Path\n"
        "from stepwise_flow import LOOPS, Files, feeds_of, in_own_process, steps\n"
        "import os, amct_onnx.stepwise.custom_ops, amct_onnx.stepwise.save, amct_onnx.stepwise.create_config\n"
        "amct_onnx.kernels.ifmr.warm_up()\n"
        "case = Path(sys.argv[1]); files = Files(sys.argv[2], case / 'model.onnx')\n"
        "for step in steps(files, feeds_of(case), LOOPS['AMCT_SO'], cfg=case / 'quant.cfg', dmq=True):\n"
        "    assert os.waitpid(in_own_process(step), 0)[1] == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(case), str(apart.folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    run_all(together, feeds_of(case), LOOPS["calibration_session"], cfg=case / "quant.cfg", dmq=True)
    ours, theirs = apart.outputs(), together.outputs()
    assert ours.pop("modified.onnx") != theirs.pop("modified.onnx")  # they name their record files
    assert ours == theirs


TEXT = """g (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) {
    [conv] a = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
    r = Relu (a)
    y = Conv <pads: ints = [1, 1, 1, 1]> (r, v)
}"""


def weights(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=(4, 4, 3, 3)) * 0.3).astype(dtype) for name in "wv"}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("opset", [11, 17])
def test_float16_layers_are_observed_as_float16(tmp_path, loop, opset):
    net = model(TEXT.replace("float[", "float16["), weights(np.float16), opset=opset)
    onnx.save(net, tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float16)} for _ in range(2)]
    files = Files(tmp_path / "flow", tmp_path / "net.onnx")
    run_all(files, feeds, LOOPS[loop], batch_num=2)
    result = amct.quantize_onnx(files.model, files.config, calibration=feeds)
    assert Path(files.record).read_text() == result.record
    assert onnx.load(f"{files.save_path}_deploy_model.onnx") == result.deploy_model


@pytest.mark.parametrize("loop", LOOPS)
def test_the_users_loop_gets_the_outputs_of_the_model(tmp_path, loop):
    onnx.save(model(TEXT, weights()), tmp_path / "net.onnx")
    files = Files(tmp_path / "flow", tmp_path / "net.onnx")
    amct.create_quant_config(files.config, files.model)
    amct.quantize_model(files.config, files.model, files.modified, files.record)
    feed = {"x": np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    (outputs,) = LOOPS[loop](files.modified, [feed])
    assert [output.shape for output in outputs] == [(2, 4, 6, 6)]


def test_updated_model_gives_every_node_the_name_that_the_configuration_uses(tmp_path):
    onnx.save(model(TEXT, weights()), tmp_path / "net.onnx")
    updated, config = tmp_path / "named.onnx", tmp_path / "config.json"
    amct.create_quant_config(str(config), str(tmp_path / "net.onnx"), updated_model=str(updated))
    assert [node.name for node in onnx.load(updated).graph.node] == ["conv", "Relu_1", "Conv_2"]
    assert {"conv", "Conv_2"} <= set(json.loads(config.read_text()))
    amct.create_quant_config(str(config), str(updated), ["Conv_2"], 3, False)
    found = json.loads(config.read_text())
    assert (found["batch_num"], found["activation_offset"]) == (3, False)
    assert (found["conv"]["quant_enable"], found["Conv_2"]["quant_enable"]) == (True, False)


def test_convert_qat_model_writes_amcts_files(tmp_path):
    onnx.save(model(TEXT, weights()), tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)}]
    asked = {"qdq": True, "correct_biases": False}  # what was corrected stands in no record
    result = amct.quantize_onnx(tmp_path / "net.onnx", calibration=feeds, save_path=tmp_path / "a/net", **asked)
    amct.convert_qat_model(str(result.qdq_model), str(tmp_path / "b/net"))
    amct.convert_qat_model(str(tmp_path / "net.onnx"), str(tmp_path / "c/net"), str(result.record))
    for folder in "bc":
        names = ["net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json"]
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
        assert onnx.load(tmp_path / folder / names[0]).graph.node == onnx.load(result.deploy_model).graph.node
    assert parse_record(Path(result.record).read_text(), "record").keys() == {"conv", "Conv_2"}
