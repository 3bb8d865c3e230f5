"""What AMCT's functions refuse, in which words, and that nothing is written then."""

import json
from pathlib import Path

import caffe_files
import numpy as np
import onnx
import pytest
from graphs import model
from stepwise_flow import LOOPS, Files

import amct_onnx as amct

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = """g (float[2, 8] x) => (float[2, 4] y) {
    [fc] a = MatMul (x, w)
    [relu] r = Relu (a)
    [out] y = MatMul (r, v)
}"""
DMQ = "common_config { dmq_balancer { migration_strength: 0.5 } }"
FEED = {"x": np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)}


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 6)), "v": rng.normal(size=(6, 4))}
    onnx.save(model(TEXT, {name: w.astype(np.float32) for name, w in weights.items()}), tmp_path / "net.onnx")
    (tmp_path / "dmq.cfg").write_text(DMQ)
    made = Files(tmp_path / "flow", tmp_path / "net.onnx")
    amct.create_quant_config(made.config, made.model)
    return made


def balanced(files):
    amct.create_quant_config(files.config, files.model, config_defination=str(files.folder.parent / "dmq.cfg"))


def quantized(files):
    amct.quantize_model(files.config, files.model, files.modified, files.record)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config_file", None, "config_file must be the path of a file, found NoneType None"),
        ("model_file", 5, "model_file must be the path of a file, found int 5"),
        ("model_file", b"net.onnx", "model_file must be the path of a file, found bytes"),
        ("skip_layers", "fc", "skip_layers must be a list of the names of layers, found str 'fc'"),
        ("skip_layers", [1], "an entry of skip_layers must be the name of a layer, found int 1"),
        ("batch_num", "1", "batch_num must be a whole number, found str '1'"),
        ("batch_num", True, "batch_num must be a whole number, found True"),
        ("activation_offset", 1, "activation_offset must be True or False, found int 1"),
        ("config_defination", 3, "config_defination must be the path of a file, found int 3"),
        ("updated_model", [], "updated_model must be the path of a file, found list"),
    ],
)
def test_arguments_of_the_wrong_type_are_type_errors(files, name, value, message):
    before = files.outputs()
    with pytest.raises(amct.ArgumentError, match=message) as raised:
        amct.create_quant_config(**{"config_file": files.config, "model_file": files.model, name: value})
    assert isinstance(raised.value, TypeError)
    assert files.outputs() == before


@pytest.mark.parametrize(
    "call",
    [
        lambda f: amct.quantize_preprocess(f.config, f.record, f.model, None),
        lambda f: amct.quantize_model(f.config, f.model, f.modified, None),
        lambda f: amct.save_model(f.modified, f.record, None),
        lambda f: amct.save_model(None, f.record, f.save_path),
        lambda f: amct.convert_qat_model(f.model, 3),
        lambda f: amct.convert_qat_model(None, f.save_path),
        lambda f: amct.calibration_session(None),
    ],
)
def test_so_are_those_of_the_other_functions(files, call):
    with pytest.raises(amct.ArgumentError, match="must be"):
        call(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_num": 0}, "batch_num must be at least 1, found 0"),
        ({"skip_layers": ["fcc"]}, r"skip_layers.*'fcc'.*did you mean 'fc'"),
        ({"config_file": ""}, "config_file must be the path of a file, found ''"),
        ({"config_file": "folder/"}, "config_file must be the path of a file, found 'folder/'"),
        ({"config_defination": "missing.cfg"}, "missing.cfg: cannot read the file"),
    ],
)
def test_values_that_are_not_allowed_are_value_errors(files, options, message):
    with pytest.raises(amct.ConfigError, match=message):
        amct.create_quant_config(**{"config_file": files.config, "model_file": files.model, **options})


@pytest.fixture
def caffe_pair(files):
    texts = [
        caffe_files.layer("InnerProduct", "inner_product_param { num_output: 3 }", name=name, bottoms=source, tops=name)
        for name, source in (("a", "x"), ("b", "a"))
    ]
    arrays = {"a": [np.ones((3, 4)), np.ones(3)], "b": [np.ones((3, 3)), np.ones(3)]}
    return tuple(map(str, caffe_files.written(files.folder, caffe_files.net({"x": [1, 4]}, *texts), arrays)))


def test_caffe_models_are_given_as_amcts_caffe_form_does(files, caffe_pair):
    def written(*arguments, **named):
        Path(files.config).unlink(missing_ok=True)
        amct.create_quant_config(files.config, *arguments, **named)
        return json.loads(Path(files.config).read_text())

    prototxt, weights = caffe_pair
    config = written(prototxt, weights)
    assert (config["a"]["quant_enable"], config["batch_num"], config["activation_offset"]) == (True, 1, True)
    assert config == written(prototxt, Path(weights)) == written(Path(prototxt), weights_file=weights)
    assert config == written(model_file=prototxt, weights_file=weights, skip_layers=None, batch_num=1)
    config = written(prototxt, weights, ["a"], 2, False)
    assert ["a" in config and config["a"]["quant_enable"], config["b"]["quant_enable"]] == [False, True]
    assert (config["batch_num"], config["activation_offset"]) == (2, False)
    assert config == written(prototxt, weights, skip_layers=["a"], batch_num=2, activation_offset=False)
    assert config == written(prototxt, ["a"], 2, False, weights_file=weights)
    definition = files.folder / "short.cfg"
    definition.write_text('batch_num: 2 activation_offset: false skip_layers: "a"')
    assert config == written(prototxt, weights, None, 1, True, str(definition))
    batches = list(np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float32))
    assert list(amct.quantize_onnx(caffe_pair, files.config, calibration=batches).plan.layers) == ["b"]


def test_caffe_models_given_wrongly_say_what_is_wrong(files, caffe_pair):
    prototxt, weights = caffe_pair
    before = files.outputs(), Path(weights).read_bytes()
    for named in ({}, {"skip_layers": ["a"]}):
        with pytest.raises(amct.ModelError, match="half a Caffe model; give both files"):
            amct.create_quant_config(files.config, prototxt, **named)
    with pytest.raises(amct.ArgumentError, match="weights_file is given twice"):
        amct.create_quant_config(files.config, prototxt, weights, weights_file=weights)
    with pytest.raises(amct.ModelError, match=r"net\.onnx: weights of Caffe go with a \.prototxt"):
        amct.create_quant_config(files.config, files.model, weights)
    with pytest.raises(amct.ArgumentError, match="skip_layers must be a list of the names of layers, found str 'fc'"):
        amct.create_quant_config(files.config, files.model, "fc")
    with pytest.raises(amct.ArgumentError, match="skip_layers must be a list of the names of layers, found int 1"):
        amct.create_quant_config(files.config, prototxt, weights, 1)
    with pytest.raises(amct.OutputError, match="is given as weights_file and as config_file"):
        amct.create_quant_config(weights, prototxt, weights)
    assert (files.outputs(), Path(weights).read_bytes()) == before


def test_a_missing_model_is_named(files):
    with pytest.raises(amct.ModelError, match=r"none\.onnx: no such file"):
        amct.quantize_model(files.config, "none.onnx", files.modified, files.record)
    assert not Path(files.record).exists()


def test_no_file_that_is_read_is_written(files):
    before = files.outputs(), Path(files.model).read_bytes()
    with pytest.raises(amct.OutputError, match="is given as model_file and as modified_onnx_file"):
        amct.quantize_model(files.config, files.model, files.model, files.record)
    with pytest.raises(amct.OutputError, match="is given as config_file and as record_file"):
        amct.quantize_model(files.config, files.model, files.modified, files.config)
    with pytest.raises(amct.OutputError, match="is given as model_file and as config_file"):
        amct.create_quant_config(files.model, files.model)
    with pytest.raises(amct.OutputError, match="is given as record_file and as modified_onnx_file"):
        amct.quantize_model(files.config, files.model, files.record, files.record)
    assert (files.outputs(), Path(files.model).read_bytes()) == before


def test_what_is_documented_to_be_replaced_is_replaced_and_nothing_else(files):
    own = {"out/net_record.txt": b"mine", "out/net_config.json": b"mine", "notes": b"mine"}
    for name, content in own.items():
        (files.folder / name).parent.mkdir(exist_ok=True)
        (files.folder / name).write_bytes(content)
    quantized(files)
    LOOPS["calibration_session"](files.modified, [FEED])
    amct.save_model(files.modified, files.record, files.save_path)
    first = files.outputs()
    amct.create_quant_config(files.config, files.model)
    quantized(files)
    LOOPS["AMCT_SO"](files.modified, [FEED])
    amct.save_model(files.modified, files.record, files.save_path)
    assert files.outputs() == first
    assert {name: first[name] for name in own} == own


def test_save_model_wants_what_quantize_model_wrote(files):
    quantized(files)
    with pytest.raises(amct.ModelError, match=r"net\.onnx: observes nothing; give the model that quantize_model wrote"):
        amct.save_model(files.model, files.record, files.save_path)
    balanced(files)
    amct.quantize_preprocess(files.config, files.record, files.model, files.modified)
    with pytest.raises(amct.ModelError, match="was written by quantize_preprocess; go on with quantize_model"):
        amct.save_model(files.modified, files.record, files.save_path)


def test_a_model_that_observes_is_not_the_float_one(files):
    quantized(files)
    with pytest.raises(amct.ModelError, match=r"modified\.onnx: is a model to calibrate with .* give the float model"):
        amct.quantize_model(files.config, files.modified, str(files.folder / "more.onnx"), files.record)
    with pytest.raises(amct.ModelError, match="give the float model"):
        amct.create_quant_config(files.config, files.modified)


def test_files_that_were_moved_are_named(files):
    quantized(files)
    moved = files.folder / "moved"
    moved.mkdir()
    modified, record = (Path(path).rename(moved / Path(path).name) for path in (files.modified, files.record))
    with pytest.raises(amct.RecordError, match=r"modified\.onnx: writes its factors to .*record\.txt, which is not"):
        amct.calibration_session(modified)
    with pytest.raises(amct.RecordError, match=r"0 of 1 .*; the model was made to write its factors to .*record\.txt"):
        amct.save_model(modified, record, files.save_path)


def test_save_model_refuses_a_record_without_scales(files):
    quantized(files)
    text = Path(files.record).read_text()
    Path(files.record).write_text(text[text.index("\n") + 1 :])
    with pytest.raises(amct.RecordError, match="record of 'fc': scale_d and offset_d are missing; calibrate the layer"):
        amct.save_model(files.modified, files.record, files.save_path)


def test_save_model_refuses_a_record_of_another_model(files):
    quantized(files)
    LOOPS["calibration_session"](files.modified, [FEED])
    Path(files.record).write_text(Path(files.record).read_text().replace('"fc"', '"conv7"'))
    with pytest.raises(amct.RecordError, match="record of 'conv7': the model has no node of that name"):
        amct.save_model(files.modified, files.record, files.save_path)


def test_a_layer_without_an_entry_stays_float(files):
    quantized(files)
    LOOPS["calibration_session"](files.modified, [FEED])
    text = Path(files.record).read_text()
    Path(files.record).write_text(text[: text.index("record {", 1)])
    amct.save_model(files.modified, files.record, files.save_path)
    deploy = onnx.load(f"{files.save_path}_deploy_model.onnx")
    assert [node.name for node in deploy.graph.node if node.op_type == "AscendQuant"] == ["fc.quant"]


def test_balancing_needs_its_factors_first(files):
    balanced(files)
    with pytest.raises(amct.RecordError, match=r"no such file; layer 'fc' is to be balanced .* call quantize_preproc"):
        quantized(files)
    amct.quantize_preprocess(files.config, files.record, files.model, files.modified)
    with pytest.raises(amct.RecordError, match="0 of 1 balancing batches have passed"):
        quantized(files)
    LOOPS["AMCT_SO"](files.modified, [FEED, {"x": FEED["x"] * 9}])  # the second changes nothing
    once = Path(files.record).read_text()
    quantized(files)
    quantized(files)  # the factors are still in the record
    LOOPS["calibration_session"](files.modified, [FEED])
    result = amct.quantize_onnx(files.model, files.config, calibration=[FEED])
    assert Path(files.record).read_text() == result.record
    Path(files.record).write_text(once.replace("    tensor_balance_factor", "    # tensor_balance_factor", 1))
    with pytest.raises(amct.RecordError, match="record of 'fc': 7 tensor_balance_factor, but the layer has 8 input"):
        quantized(files)


def test_a_record_without_factors_is_no_answer_to_balancing(files):
    quantized(files)
    balanced(files)
    with pytest.raises(amct.RecordError, match="it has no tensor_balance_factor; layer 'fc' is to be balanced"):
        quantized(files)


def test_a_layer_that_could_not_be_balanced_stays_float(files):
    balanced(files)
    amct.quantize_preprocess(files.config, files.record, files.model, files.modified)
    LOOPS["calibration_session"](files.modified, [FEED])
    text = Path(files.record).read_text()
    Path(files.record).write_text(text[text.index("record {", 1) :])
    quantized(files)
    assert '"fc"' not in Path(files.record).read_text()


def test_preprocessing_needs_a_layer_to_balance(files):
    with pytest.raises(amct.ConfigError, match="balances no layer"):
        amct.quantize_preprocess(files.config, files.record, files.model, files.modified)


def test_a_modified_model_of_another_tool_is_refused(files):
    quantized(files)
    changed = onnx.load(files.modified)
    for node in changed.graph.node:
        if node.op_type == "IFMR":
            del node.attribute[:]
    onnx.save(changed, files.modified)
    with pytest.raises(amct.ModelError, match=r"node 'fc\.IFMR' \(IFMR\) was not written by this version"):
        amct.calibration_session(files.modified)


def test_arguments_that_a_cfg_replaces_are_said_to_be_unused(files, caplog):
    amct.create_quant_config(files.config, files.model, ["fc"], 4, config_defination=files.folder.parent / "dmq.cfg")
    assert "skip_layers, batch_num and activation_offset are not used" in caplog.text
    assert json.loads(Path(files.config).read_text())["batch_num"] == 1
