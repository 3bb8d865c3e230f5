"""Caffe models wherever a model is taken: by calls and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from caffe_files import layer, net, written
from graphs import run

from amct_onnx import SimulatedSession, compare_models, convert_model, import_caffe, quantize_onnx, verify_deploy_model
from amct_onnx.cli import main
from amct_onnx.errors import ModelError, OutputError

CONV = "convolution_param {{ num_output: {} kernel_size: 3 pad: 1 bias_term: {} }}"
TEXT = net(
    {"data": (2, 3, 9, 9)},
    layer("Convolution", CONV.format(8, "false"), "data", "c", "conv1"),
    layer("BatchNorm", "", "c", "c", "bn1"),
    layer("Scale", "scale_param { bias_term: true }", "c", "c", "scale1"),
    layer("ReLU", "", "c", "c", "relu1"),
    layer("Convolution", CONV.format(8, "true"), "c", "d", "conv2"),
    layer("Scale", "", "d", "d", "scale2"),
    layer("Eltwise", "", "c d", "sum", "sum"),
    layer("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }", "sum", "p", "pool"),
    layer("Dropout", "", "p", "p", "drop"),
    layer("InnerProduct", "inner_product_param { num_output: 5 }", "p", "fc", "fc"),
    layer("Softmax", "", "fc", "prob", "prob"),
)
LAYERS = ["conv1", "conv2", "pool", "fc"]
FILES = ["config.json", "deploy_model.onnx", "fake_quant_model.onnx", "record.txt"]


def weights() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / 3

    return {
        "conv1": [draw(8, 3, 3, 3)],
        "bn1": [draw(8), draw(8) ** 2 + 1, np.array([2.0], np.float32)],
        "scale1": [draw(8) + 1, draw(8)],
        "conv2": [draw(8, 8, 3, 3), draw(8)],
        "scale2": [draw(8) + 1],
        "fc": [draw(5, 8 * 5 * 5), draw(5)],
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return written(tmp_path_factory.mktemp("caffe"), TEXT, weights())


@pytest.fixture(scope="module")
def batches():
    return list(np.random.default_rng(1).normal(size=(3, 2, 3, 9, 9)).astype(np.float32))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def status(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_pair_is_quantized_as_its_import_is(pair, batches, tmp_path):
    result = quantize_onnx(pair, calibration=batches, save_path=tmp_path / "a" / "net")
    quantize_onnx(import_caffe(*pair), calibration=batches, save_path=tmp_path / "b" / "net")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [f"net_{name}" for name in FILES]
    assert list(result.plan.layers) == LAYERS
    assert result.output_errors["prob"].sqnr > 25


def test_batch_norm_and_scale_fold_into_the_convolutions(pair, batches):
    plan = quantize_onnx(pair, calibration=batches).plan
    for name, layer_name in (("bn1", "conv1"), ("scale1", "bn1"), ("scale2", "conv2")):
        assert plan.skipped[name].startswith(f"folded into '{layer_name}'")


def test_configurations_speak_of_caffe_s_layers(pair, batches):
    block = {
        "quant_enable": True,
        "activation_quant_params": {"act_algo": "hfmg", "num_of_bins": 1024, "asymmetric": False},
        "weight_quant_params": {"wts_algo": "arq_quantize", "channel_wise": False},
    }
    settings = {"version": 1, "batch_num": 2, "activation_offset": True, "joint_quant": False, "do_fusion": True}
    result = quantize_onnx(pair, {**settings, "skip_fusion_layers": [], "conv2": block}, calibration=batches)
    assert list(result.plan.layers) == ["conv2"]
    result = quantize_onnx(
        pair, calibration=batches, skip_layer_types=["Pooling", "InnerProduct"], skip_layers=["conv1"]
    )
    assert list(result.plan.layers) == ["conv2"]
    assert json.loads(result.config)["pool"]["quant_enable"] is False


def test_a_pair_is_taken_by_every_call_that_takes_a_model(pair, batches, tmp_path):
    result = quantize_onnx(pair, calibration=batches, save_path=tmp_path / "net", correct_biases=False)
    again = convert_model(pair, result.record, data=batches, wide_fusion=True)
    assert again.deploy_model.SerializeToString() == result.deploy_model.read_bytes()
    found = compare_models(pair, result.fake_quant_model, [{"data": batch} for batch in batches])
    assert list(found.layers) == LAYERS
    assert verify_deploy_model(result.deploy_model, record=result.record, float_model=pair).ok


def test_the_numbers_are_caffe_s(pair, batches):
    """The whole network once more by numpy."""
    given = {name: [array.astype(np.float64) for array in arrays] for name, arrays in weights().items()}

    def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("nchwij,mcij->nmhw", windows, w)

    def channels(v: np.ndarray) -> np.ndarray:
        return v.reshape(1, -1, 1, 1)

    mean, variance, factor = given["bn1"]
    x = conv(batches[0], *given["conv1"])
    x = (x - channels(mean / factor)) / np.sqrt(channels(variance / factor) + 1e-5)
    x = np.maximum(x * channels(given["scale1"][0]) + channels(given["scale1"][1]), 0)
    x = x + (conv(x, given["conv2"][0]) + channels(given["conv2"][1])) * channels(given["scale2"][0])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].mean(axis=(4, 5))
    x = x.reshape(2, -1) @ given["fc"][0].T + given["fc"][1]
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(import_caffe(*pair), {"data": batches[0]})["prob"], expected, rtol=1e-4, atol=1e-6)


# (size, kernel, stride, pad): one AveragePool that counts its padding, one that counts none, one behind a Pad
@pytest.mark.parametrize("sizes", [(9, 3, 2, 1), (6, 3, 2, 0), (7, 5, 4, 2)])
def test_average_pooling_in_any_form_is_quantized_alike(sizes, tmp_path):
    size, kernel, stride, pad = sizes
    params = f"pooling_param {{ pool: AVE kernel_size: {kernel} stride: {stride} pad: {pad} }}"
    pair = written(tmp_path, net({"data": (1, 4, size, size)}, layer("Pooling", params, "data", "p", "pool")), {})
    data = list(np.random.default_rng(2).normal(size=(4, 1, 4, size, size)).astype(np.float32) + 1)
    result = quantize_onnx(pair, calibration=data)
    assert list(result.plan.layers) == ["pool"]
    expected = run(result.fake_quant_model, {"data": data[0]})["p"]
    chip = SimulatedSession(result.deploy_model, "fixpipe").run(None, {"data": data[0]})[0]
    np.testing.assert_allclose(chip, expected, rtol=2e-3, atol=1e-3)
    assert result.output_errors["p"].sqnr > 40


# import_caffe


def test_the_import_is_written_where_it_is_asked_for(pair, tmp_path):
    target = tmp_path / "new" / "net.onnx"
    for _ in range(2):  # the second time it replaces the file
        model = import_caffe(*pair, target)
        assert onnx.load(target) == model
        assert list(target.parent.iterdir()) == [target]


def test_the_import_never_replaces_what_it_reads(tmp_path):
    pair = written(tmp_path, TEXT, weights())
    before = contents(tmp_path)
    for target in (*pair, tmp_path / "x" / ".." / "net.caffemodel"):
        with pytest.raises(OutputError, match="is read; choose another"):
            import_caffe(*pair, target)
    assert contents(tmp_path) == before


def test_a_link_leads_to_the_file_to_write(pair, tmp_path):
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real.onnx")
    import_caffe(*pair, tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert (tmp_path / "real.onnx").is_file()


@pytest.mark.parametrize("target", ["", 3, "folder/", "a\0b"])
def test_a_target_that_is_no_file_is_refused(pair, target):
    with pytest.raises(OutputError, match=r"give the path of an \.onnx file|no file can have"):
        import_caffe(*pair, target)


def test_results_never_replace_either_file(tmp_path, batches):
    pair = written(tmp_path, TEXT, weights())
    pair = pair[0], pair[1].rename(tmp_path / "net_record.txt")
    with pytest.raises(OutputError, match=r"net_record.txt: is the model that is read"):
        quantize_onnx(pair, calibration=batches, save_path=tmp_path / "net")


@pytest.mark.parametrize("model", [("a.prototxt",), ("a", "b", "c"), ()])
def test_other_tuples_are_no_models(model):
    with pytest.raises(ModelError, match=r"is given as \(prototxt, caffemodel\)"):
        quantize_onnx(model)


def test_half_a_model_says_what_is_missing(pair):
    for half in pair:
        with pytest.raises(ModelError, match=r"half a Caffe model; give both files: \(prototxt, caffemodel\)"):
            quantize_onnx(half)


# the command line


def test_the_command_line_takes_a_prototxt_and_weights(pair, batches, tmp_path, capfd):
    np.savez(tmp_path / "data.npz", **{f"data_{i}": batch for i, batch in enumerate(batches)})
    model, data = ["--model", pair[0], "--weights", pair[1]], ["--data", tmp_path / "data.npz"]
    assert status("calibration", *model, "--save_path", tmp_path / "cli" / "net", *data) == 0
    quantize_onnx(pair, calibration=batches, save_path=tmp_path / "call" / "net")
    written = contents(tmp_path / "cli")
    assert written.pop("net_quant.json")  # the command line alone writes it
    assert written == contents(tmp_path / "call")
    record = tmp_path / "cli" / "net_record.txt"
    more = ["--record", record, "--wide_fusion", "--save_path", tmp_path / "converted" / "net"]
    assert status("convert", *model, *more, *data) == 0
    plain = quantize_onnx(pair, calibration=batches, save_path=tmp_path / "plain" / "net", correct_biases=False)
    for path in (plain.deploy_model, plain.record):
        assert (tmp_path / "converted" / path.name).read_bytes() == path.read_bytes()
    models = [pair[0], tmp_path / "cli" / "net_fake_quant_model.onnx"]
    capfd.readouterr()
    assert status("compare", *models, "--weights", pair[1], *data) == 0
    assert "conv2" in capfd.readouterr().out
    models.append(tmp_path / "cli" / "net_deploy_model.onnx")
    assert status("agreement", *models, "--weights", pair[1], *data, "--profiles", "fixpipe") == 0
    simulated = [models[-1], "--reference", pair[0], "--weights", pair[1]]
    assert status("simulate", *simulated, *data) == 0
    assert status("verify", models[-1], "--record", record, "--float-model", pair[0], "--weights", pair[1]) == 0
    assert status("plan", pair[0], "--weights", pair[1]) == 0
    assert "4 layers to quantize" in capfd.readouterr().out


def test_convert_caffe_writes_the_import(pair, tmp_path, capsys):
    target = tmp_path / "net.onnx"
    assert status("convert-caffe", *pair, "--output", target) == 0
    assert capsys.readouterr().out.splitlines() == [str(target)]
    assert target.read_bytes() == import_caffe(*pair).SerializeToString()


def test_errors_of_the_command_line_are_explained(pair, tmp_path, capsys):
    assert status("plan", pair[0]) == 1
    assert "give both files: (prototxt, caffemodel), or --weights" in capsys.readouterr().err
    before = pair[1].read_bytes()
    data = tmp_path.parent / "none.npz"
    assert status("agreement", pair[0], "a", "b", "--weights", pair[1], "--data", data, "--json", pair[1]) == 1
    assert "would overwrite what is read" in capsys.readouterr().err
    assert pair[1].read_bytes() == before
    assert status("verify", pair[0], "--weights", pair[1]) == 2
    assert "--weights goes with a float model" in capsys.readouterr().err
    assert status("convert-caffe", pair[1], pair[0], "--output", tmp_path / "net.onnx") == 1
    assert "amct_onnx: " in capsys.readouterr().err
    assert status("convert", "--model", pair[0], "--weights", pair[1], "--save_path", tmp_path / "net") == 1
    assert "--weights goes with --record" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
