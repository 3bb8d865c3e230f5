"""Bad input: one clear error of ours through the function and through the command line, and no file left behind."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from odd_graphs import ODD_GRAPHS, REFUSED, save_with_external_data

from amct_onnx import (
    AmctError,
    ConfigError,
    DataError,
    ModelError,
    NotAvailableError,
    OutputError,
    PassError,
    cli,
    quantize_onnx,
)

FILES = ("net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_record.txt", "net_config.json")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(**replaced):
    """Conv, BatchNormalization that follows a Relu, Conv; `replaced` gives other weights."""
    values = {
        "w1": draw(4, 3, 3, 3),
        "b1": draw(4, seed=1),
        "scale": np.ones(4, np.float32),
        "shift": draw(4, seed=2),
        "mean": draw(4, seed=3),
        "var": np.ones(4, np.float32),
        "w2": draw(4, 4, 3, 3, seed=4),
    }
    return model(
        """
        g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
          [conv1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
          [relu] b = Relu (a)
          [norm] c = BatchNormalization (b, scale, shift, mean, var)
          [conv2] y = Conv <pads = [1, 1, 1, 1]> (c, w2)
        }
        """,
        values | replaced,
    )


IMAGES = draw(2, 3, 8, 8, seed=9)


def tree(folder):
    """Every file and folder with its content, time and rights."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (
            content,
            status.st_mtime_ns if content is not None else 0,
            status.st_mode,
        )
    return found


@contextmanager
def unchanged(folder):
    before = tree(folder)
    yield
    assert tree(folder) == before


@dataclass
class Case:
    """What is given to a call, by path; `parts` must stand in the message."""

    error: type[AmctError]
    parts: list[str]
    model: Path | None = None
    cfg: Path | None = None
    data: Path | None = None
    save_path: str | None = None
    batch_num: int | None = None


CASES = {}


def case(make):
    CASES[make.__name__.replace("_", " ")] = make
    return make


def saved(m, path):
    onnx.save_model(m, path)
    return path


# Models


@case
def no_such_model(folder):
    return Case(ModelError, ["none.onnx", "no such file"], model=folder / "none.onnx")


@case
def model_is_a_directory(folder):
    return Case(ModelError, ["not a file", str(folder)], model=folder)


@case
def model_file_is_empty(folder):
    (folder / "empty.onnx").touch()
    return Case(ModelError, ["empty.onnx", "not an ONNX model"], model=folder / "empty.onnx")


@case
def model_file_is_text(folder):
    (folder / "text.onnx").write_text("This is no model.\n" * 20)
    return Case(ModelError, ["text.onnx", "not an ONNX model"], model=folder / "text.onnx")


@case
def model_file_is_noise(folder):
    (folder / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return Case(ModelError, ["noise.onnx", "not an ONNX model"], model=folder / "noise.onnx")


def model_is_another_kind_of_file(folder, ending, text):
    (folder / f"other.{ending}").write_text(text)
    return Case(ModelError, [f"other.{ending}"], model=folder / f"other.{ending}")


@case
def model_is_a_json_file(folder):
    return model_is_another_kind_of_file(folder, "json", '{"version": 1}')


@case
def model_is_a_textual_protobuf(folder):
    return model_is_another_kind_of_file(folder, "pbtxt", "batch_num: 1")


@case
def model_is_a_prototxt(folder):
    return model_is_another_kind_of_file(folder, "prototxt", "layer { name: 'conv1' }")


@case
def model_is_a_textual_onnx(folder):
    return model_is_another_kind_of_file(folder, "onnxtxt", "no graph")


def truncated_model(folder, keep):
    content = network().SerializeToString()
    (folder / "short.onnx").write_bytes(content[: int(len(content) * keep) - 1])
    return Case(ModelError, ["short.onnx", "truncated"], model=folder / "short.onnx")


@case
def model_is_truncated_in_the_middle(folder):
    return truncated_model(folder, 0.5)


@case
def model_is_truncated_by_one_byte(folder):
    return truncated_model(folder, 1.0)


def with_external_data(folder):
    (folder / "in").mkdir()
    return save_with_external_data(
        next(build() for build in ODD_GRAPHS if build.__name__ == "external_data"), folder / "in"
    )


@case
def weights_beside_the_model_are_missing(folder):
    path = with_external_data(folder)
    (folder / "in" / "external_data.weights").unlink()
    return Case(ModelError, ["external_data.onnx", "external_data.weights"], model=path)


@case
def weights_beside_the_model_are_truncated(folder):
    path = with_external_data(folder)
    weights = folder / "in" / "external_data.weights"
    weights.write_bytes(weights.read_bytes()[:1000])
    return Case(ModelError, ["external_data.onnx"], model=path)


@case
def weight_is_shorter_than_its_shape_says(folder):
    m = network()
    m.graph.initializer[0].raw_data = m.graph.initializer[0].raw_data[:-4]
    return Case(ModelError, ["w1"], model=saved(m, folder / "bad.onnx"))


@case
def weight_has_an_unknown_element_type(folder):
    m = network()
    m.graph.initializer[0].data_type = 99
    return Case(ModelError, ["w1"], model=saved(m, folder / "bad.onnx"))


@case
def model_has_no_outputs(folder):
    m = network()
    del m.graph.output[:]
    return Case(ModelError, ["bad.onnx", "outputs"], model=saved(m, folder / "bad.onnx"))


@case
def node_reads_what_nobody_makes(folder):
    m = network()
    m.graph.node[1].input[0] = "lost"
    return Case(ModelError, ["'relu'", "'lost'"], model=saved(m, folder / "bad.onnx"))


@case
def nodes_are_not_in_order(folder):
    m = network()
    nodes = [*m.graph.node][::-1]
    del m.graph.node[:]
    m.graph.node.extend(nodes)
    return Case(ModelError, ["'conv2'", "'c'"], model=saved(m, folder / "bad.onnx"))


@case
def operator_is_unknown(folder):
    m = network()
    m.graph.node[1].op_type = "Nonsense"
    return Case(ModelError, ["Nonsense"], model=saved(m, folder / "bad.onnx"))


@case
def domain_is_not_imported(folder):
    m = network()
    m.graph.node[1].domain = "my.own"
    return Case(ModelError, ["my.own"], model=saved(m, folder / "bad.onnx"))


@case
def required_attribute_is_missing(folder):
    m = network()
    m.graph.node[1].op_type = "AveragePool"
    return Case(ModelError, ["kernel_shape"], model=saved(m, folder / "bad.onnx"))


@case
def kernel_does_not_fit_its_weight(folder):
    m = network()
    m.graph.node[0].attribute.append(onnx.helper.make_attribute("kernel_shape", [5, 5]))
    return Case(ModelError, ["kernel_shape"], model=saved(m, folder / "bad.onnx"))


@case
def opset_is_not_said(folder):
    m = network()
    del m.opset_import[:]
    return Case(ModelError, ["opset"], model=saved(m, folder / "bad.onnx"))


@case
def opset_is_of_the_future(folder):
    m = network()
    m.opset_import[0].version = 999
    return Case(ModelError, ["opset 999", "11 to 18"], model=saved(m, folder / "bad.onnx"))


@case
def input_of_the_model_has_no_element_type(folder):
    m = network()
    m.graph.input[0].type.tensor_type.elem_type = 0
    return Case(AmctError, ["'x'"], model=saved(m, folder / "bad.onnx"))


@case
def model_is_quantized_already(folder):
    result = quantize_onnx(network(), calibration=IMAGES)
    return Case(ModelError, ["quantized already"], model=saved(result.deploy_model, folder / "bad.onnx"))


@case
def model_is_a_fake_quant_model(folder):
    result = quantize_onnx(network(), calibration=IMAGES)
    return Case(ModelError, ["quantized already"], model=saved(result.fake_quant_model, folder / "bad.onnx"))


@case
def model_has_nothing_to_quantize(folder):
    m = model("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { [relu] y = Relu (x) }")
    return Case(ModelError, ["no layer", "Conv", "MatMul"], model=saved(m, folder / "bad.onnx"))


@case
def model_is_of_float64(folder):
    odd = next(build() for build in REFUSED if build.__name__ == "float64_model")
    return Case(ModelError, ["no layer", "float64"], model=saved(odd.model, folder / "bad.onnx"))


# Values in the model


def spoilt(name, value, shape):
    array = np.ones(shape, np.float32)
    array.flat[1] = value
    return network(**{name: array})


@case
def nan_in_a_weight(folder):
    path = saved(spoilt("w1", np.nan, (4, 3, 3, 3)), folder / "bad.onnx")
    return Case(ModelError, ["'w1'", "'conv1'", "NaN"], model=path)


@case
def infinity_in_a_weight(folder):
    path = saved(spoilt("w2", np.inf, (4, 4, 3, 3)), folder / "bad.onnx")
    return Case(ModelError, ["'w2'", "'conv2'", "inf"], model=path)


@case
def nan_in_a_bias(folder):
    path = saved(spoilt("b1", np.nan, 4), folder / "bad.onnx")
    return Case(ModelError, ["'b1'", "'conv1'", "NaN"], model=path)


@case
def nan_in_the_statistics_of_a_normalization(folder):
    path = saved(spoilt("mean", np.nan, 4), folder / "bad.onnx")
    return Case(ModelError, ["NaN"], model=path)


# Configurations


def configured(folder, error, parts, text, name="quant.cfg"):
    (folder / name).write_text(text, encoding="utf-8")
    return Case(error, parts, cfg=folder / name)


@case
def no_such_configuration(folder):
    return Case(ConfigError, ["none.cfg", "No such file"], cfg=folder / "none.cfg")


@case
def configuration_is_a_directory(folder):
    return Case(ConfigError, [str(folder)], cfg=folder)


@case
def configuration_is_empty(folder):
    return configured(folder, ConfigError, ["quant.cfg", "empty"], " \n")


@case
def configuration_is_no_text(folder):
    (folder / "quant.cfg").write_bytes(b"\xff\xfe\x00binary")
    return Case(ConfigError, ["quant.cfg", "UTF-8"], cfg=folder / "quant.cfg")


@case
def unknown_field(folder):
    parts = ["quant.cfg", "line 2", "'batch_number'", "'batch_num'"]
    return configured(folder, ConfigError, parts, "activation_offset: true\nbatch_number: 3")


@case
def field_of_the_wrong_type(folder):
    return configured(folder, ConfigError, ["quant.cfg", "line 1", "batch_num"], 'batch_num: "three"')


@case
def value_out_of_its_range(folder):
    text = "common_config { ifmr_quantize { max_percentile: 1.5 } }"
    return configured(folder, ConfigError, ["quant.cfg", "common_config", "max_percentile", "1.5"], text)


@case
def bracket_that_nobody_opened(folder):
    return configured(folder, ConfigError, ["quant.cfg", "line 2"], "batch_num: 1\n}}")


@case
def unknown_layer_in_a_cfg(folder):
    return configured(folder, ConfigError, ["skip_layers", "'conv3'", "'conv1'", "'conv2'"], 'skip_layers: "conv3"')


@case
def unknown_layer_type_in_a_cfg(folder):
    text = 'skip_layer_types: "Convv"'
    return configured(folder, ConfigError, ["quant.cfg", "'Convv'", "'Conv'"], text)


@case
def layer_listed_twice(folder):
    text = 'skip_layers: "conv1" skip_layers: "conv1"'
    return configured(folder, ConfigError, ["quant.cfg", "skip_layers", "'conv1'", "2 times"], text)


@case
def everything_is_skipped(folder):
    parts = ["no layer", "'conv1'", "'conv2'", "skip_layer_types"]
    return configured(folder, ModelError, parts, 'skip_layer_types: "Conv"')


@case
def request_that_a_layer_cannot_honour(folder):
    text = 'override_layer_types { layer_type: "Conv" calibration_config { ada_quantize { num_iteration: -1 } } }'
    return configured(folder, ConfigError, ["quant.cfg", "num_iteration"], text)


@case
def request_that_is_not_available(folder):
    found = {"conv1": {"quant_enable": True, "activation_quant_params": {"num_bits": 4}}}
    return configured_by_json(folder, ["'conv1'", "4-bit activations"], found, NotAvailableError)


def configured_by_json(folder, parts, found, error=ConfigError):
    text = found if isinstance(found, str) else json.dumps(found)
    return configured(folder, error, parts, text, "config.json")


@case
def json_is_cut_off(folder):
    return configured_by_json(folder, ["config.json", "line 1"], '{"version": 1, "conv1": {')


@case
def json_with_an_unknown_key_of_a_layer(folder):
    found = {"conv1": {"quant_enabled": True, "quant_enable": True}}
    return configured_by_json(folder, ["config.json", "'conv1'", "'quant_enabled'", "'quant_enable'"], found)


@case
def json_with_an_unknown_setting(folder):
    return configured_by_json(folder, ["config.json", "'batch_number'", "batch_num"], {"batch_number": 3})


@case
def json_with_a_wrong_type(folder):
    found = {"conv1": {"quant_enable": "yes"}}
    return configured_by_json(folder, ["config.json", "'conv1'", "quant_enable", "'yes'"], found)


@case
def json_with_a_repeated_key(folder):
    text = '{"conv1": {"quant_enable": true}, "conv1": {"quant_enable": true}}'
    return configured_by_json(folder, ["config.json", "'conv1'", "twice"], text)


@case
def json_with_an_unknown_layer(folder):
    found = {"conv1": {"quant_enable": True}, "conv11": {"quant_enable": True}}
    return configured_by_json(folder, ["'conv11'", "'conv1'"], found)


@case
def json_that_enables_nothing(folder):
    found = {"conv1": {"quant_enable": False}}
    return configured_by_json(folder, ["no layer", "quant_enable"], found, ModelError)


# Data


def calibrated_with(folder, parts, **arrays):
    np.savez(folder / "bad.npz", **arrays)
    return Case(DataError, parts, data=folder / "bad.npz")


@case
def no_such_data(folder):
    return Case(DataError, ["none.npz"], data=folder / "none.npz")


@case
def directory_of_data_is_empty(folder):
    (folder / "data").mkdir()
    return Case(DataError, [str(folder / "data"), "no files"], data=folder / "data")


@case
def data_of_no_known_kind(folder):
    (folder / "data.h5").touch()
    return Case(DataError, ["data.h5", ".npz", ".npy"], data=folder / "data.h5")


@case
def data_that_are_damaged(folder):
    (folder / "data.npz").write_bytes(b"no archive")
    return Case(DataError, ["data.npz"], data=folder / "data.npz")


@case
def data_under_a_wrong_name(folder):
    return calibrated_with(folder, ["bad.npz", "image", "x"], image=IMAGES)


@case
def data_of_a_wrong_shape(folder):
    return calibrated_with(folder, ["batch 0", "'x'", "[2, 3, 8]", "[N, 3, 8, 8]"], x=IMAGES[..., 0])


@case
def data_of_a_wrong_type(folder):
    return calibrated_with(folder, ["batch 0", "'x'", "float64", "float32"], x=IMAGES.astype(np.float64))


@case
def data_without_rows(folder):
    return calibrated_with(folder, ["batch 0", "'x'", "empty"], x=IMAGES[:0])


@case
def nan_in_the_data(folder):
    return calibrated_with(folder, ["batch 0", "'x'", "NaN"], x=np.full_like(IMAGES, np.nan))


@case
def infinity_in_a_later_batch(folder):
    """The calibration is under way by then."""
    return calibrated_with(folder, ["batch 2", "'x'", "inf"], x_0=IMAGES, x_1=IMAGES, x_2=IMAGES * np.float32(np.inf))


@case
def damaged_file_as_a_later_batch(folder):
    (folder / "data").mkdir()
    np.save(folder / "data" / "0.npy", IMAGES)
    (folder / "data" / "1.npy").write_bytes(b"no array")
    return Case(DataError, ["1.npy"], data=folder / "data")


@case
def too_few_batches(folder):
    np.savez(folder / "few.npz", x_0=IMAGES, x_1=IMAGES)
    return Case(DataError, ["batch_num is 3", "2 batches"], data=folder / "few.npz", batch_num=3)


@case
def batch_num_of_zero(folder):
    return Case(ConfigError, ["batch_num", "0"], batch_num=0)


# Targets


@case
def target_below_a_file(folder):
    (folder / "file").write_text("mine")
    return Case(OutputError, [str(folder / "file")], save_path=str(folder / "file" / "net"))


@case
def target_deep_below_a_file(folder):
    (folder / "file").write_text("mine")
    return Case(OutputError, [str(folder / "file")], save_path=str(folder / "file" / "deep" / "net"))


@case
def target_where_nothing_can_be_made(folder):
    return Case(OutputError, ["/proc"], save_path="/proc/amct_onnx/net")


@case
def target_that_is_a_directory(folder):
    (folder / "out" / "bad_record.txt").mkdir(parents=True)
    return Case(OutputError, ["bad_record.txt", "directory"], save_path=str(folder / "out" / "bad"))


@case
def target_without_a_name(folder):
    return Case(OutputError, ["save_path", "empty"], save_path="")


@case
def target_with_too_long_a_name(folder):
    return Case(OutputError, ["too long"], save_path=str(folder / ("n" * 300)))


@case
def target_with_too_long_a_folder(folder):
    return Case(OutputError, ["too long"], save_path=str(folder / ("n" * 300) / "net"))


@case
def target_with_a_nul(folder):
    return Case(OutputError, ["new", r"n\x00et"], save_path=str(folder / "new" / "n\0et"))


# Both ways in


@pytest.fixture
def prepared(request, tmp_path):
    """A case with what it leaves out filled in: a network, data, and a directory with older results."""
    case = CASES[request.param](tmp_path)
    if case.model is None:
        case.model = saved(network(), tmp_path / "good.onnx")
    if case.data is None:
        np.savez(tmp_path / "good.npz", x=IMAGES)
        case.data = tmp_path / "good.npz"
    if case.save_path is None:
        case.save_path = str(tmp_path / "out" / "net")
        (tmp_path / "out").mkdir()
        for name in (*FILES, "mine.txt"):
            (tmp_path / "out" / name).write_text("older")
    return tmp_path, case


every_case = pytest.mark.parametrize("prepared", CASES, indirect=True)


@every_case
def test_the_function_raises_one_clear_error_and_leaves_no_file(prepared):
    folder, case = prepared
    options = {} if case.batch_num is None else {"batch_num": case.batch_num}
    with unchanged(folder), pytest.raises(case.error) as caught:
        quantize_onnx(case.model, case.cfg, calibration=case.data, save_path=case.save_path, **options)
    assert not isinstance(caught.value, PassError), "that would be a fault of the engine"
    for part in case.parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@every_case
def test_the_command_line_says_it_in_one_line_and_leaves_no_file(prepared, capfd):
    folder, case = prepared
    arguments = ["calibration", "-q", f"--model={case.model}", f"--save_path={case.save_path}", f"--data={case.data}"]
    arguments += [] if case.cfg is None else [f"--calibration_config={case.cfg}"]
    arguments += [] if case.batch_num is None else [f"--batch_num={case.batch_num}"]
    with unchanged(folder):
        assert cli.main(arguments) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("amct_onnx: ")
    assert said.err.count("\n") == 1
    for part in case.parts:
        assert part in said.err


NEW = ("no such data", "nan in the data", "infinity in a later batch", "unknown field", "nan in a weight")


@pytest.mark.parametrize("prepared", NEW, indirect=True)
def test_a_target_that_was_not_there_is_not_there_afterwards(prepared):
    folder, case = prepared
    with unchanged(folder), pytest.raises(AmctError):
        quantize_onnx(case.model, case.cfg, calibration=case.data, save_path=folder / "new" / "deep" / "net")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["net.onnx"]])
def test_what_is_no_model_and_no_path_is_named_by_its_type(tmp_path, wrong):
    kind = type(wrong).__name__
    with pytest.raises(ModelError, match=kind):
        quantize_onnx(wrong, calibration=IMAGES)
    with pytest.raises(ConfigError, match=kind) if wrong is not None else pytest.raises(DataError):
        quantize_onnx(network(), wrong)
    if wrong is not None:
        with pytest.raises(OutputError, match=kind), unchanged(tmp_path):
            quantize_onnx(network(), calibration=IMAGES, save_path=wrong)


# Failures while the results are written


@pytest.fixture(params=["new", "old"])
def target(request, tmp_path):
    """A directory that is not there, and one with older results."""
    if request.param == "old":
        (tmp_path / "old").mkdir()
        for name in (*FILES[1:], "mine.txt"):
            (tmp_path / "old" / name).write_text("older")
    return tmp_path, tmp_path / request.param / "net"


@contextmanager
def largest_file(size):
    """The system refuses to write files beyond `size` bytes, after having written that many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    quantize_onnx(network(), calibration=IMAGES, save_path=folder / "net")
    return {name: (folder / name).stat().st_size for name in FILES}


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_can_be_written_only_in_part_leaves_nothing(target, sizes, which):
    folder, save_path = target
    limit = sizes[FILES[which]] - 1
    with unchanged(folder), largest_file(limit), pytest.raises(OutputError) as caught:
        quantize_onnx(network(), calibration=IMAGES, save_path=save_path)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert str(save_path.parent) in str(caught.value)


def on_call(number, function, error):
    """`function`, that raises at its `number`-th call instead."""
    calls = 0

    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return function(*args, **kwargs)

    return fails


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("place", ["models", "texts"])
def test_a_full_disk_leaves_nothing(monkeypatch, target, number, place):
    folder, save_path = target
    if place == "models":
        monkeypatch.setattr(Path, "write_bytes", on_call(number, Path.write_bytes, FULL))
    else:
        monkeypatch.setattr(Path, "write_text", on_call(number, Path.write_text, FULL))
    with unchanged(folder), pytest.raises(OutputError, match="No space left on device"):
        quantize_onnx(network(), calibration=IMAGES, save_path=save_path)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_move_that_fails_takes_back_those_before_it(monkeypatch, target, number):
    folder, save_path = target
    monkeypatch.setattr(os, "replace", on_call(number, os.replace, FULL))
    with unchanged(folder), pytest.raises(OutputError, match="No space left on device"):
        quantize_onnx(network(), calibration=IMAGES, save_path=save_path)


def test_an_interrupt_while_writing_leaves_nothing(monkeypatch, target):
    folder, save_path = target
    monkeypatch.setattr(Path, "write_bytes", on_call(2, Path.write_bytes, KeyboardInterrupt()))
    with unchanged(folder), pytest.raises(KeyboardInterrupt):
        quantize_onnx(network(), calibration=IMAGES, save_path=save_path)


def test_a_failed_verification_leaves_nothing(monkeypatch, target):
    def refuse(*_, **__):
        raise ModelError("it does not run")

    folder, save_path = target
    monkeypatch.setattr("amct_onnx.results._verified", refuse)
    with unchanged(folder), pytest.raises(ModelError, match="it does not run"):
        quantize_onnx(network(), calibration=IMAGES, save_path=save_path)


def test_what_somebody_else_puts_into_a_new_directory_meanwhile_stays(monkeypatch, tmp_path):
    """The call fails; the directory that it made is no longer its own alone."""

    def refuse(*_, **__):
        (tmp_path / "new" / "other.txt").write_text("of somebody else")
        raise ModelError("it does not run")

    monkeypatch.setattr("amct_onnx.results._verified", refuse)
    with pytest.raises(ModelError, match="it does not run"):
        quantize_onnx(network(), calibration=IMAGES, save_path=tmp_path / "new" / "net")
    assert list(tree(tmp_path)) == ["new", "new/other.txt"]


def test_temporary_files_are_made_beside_the_target_and_not_elsewhere(monkeypatch, tmp_path):
    """So that moving them into place is one step."""
    seen = []
    write = Path.write_bytes

    def note(path, content):
        seen.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", note)
    quantize_onnx(network(), calibration=IMAGES, save_path=tmp_path / "out" / "net")
    assert len(seen) == 2
    assert all((tmp_path / "out") in path.parents and path.parent != tmp_path / "out" for path in seen)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(FILES)


# Odd but not bad


ODD_NAMES = ["/model/conv/Conv:0", "卷积 'two'", "Ünïcödé {};#%"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_layer_with_an_odd_name_can_be_named_in_every_form_of_configuration(tmp_path, name):
    odd = next(build() for build in ODD_GRAPHS if build.__name__ == "names_of_nodes_odd")
    expected = [layer for layer in ODD_NAMES if layer != name]
    (tmp_path / "quant.cfg").write_text(f'batch_num: 1 skip_layers: "{name}"', encoding="utf-8")
    (tmp_path / "config.json").write_text(
        json.dumps({layer: {"quant_enable": layer != name} for layer in ODD_NAMES}), encoding="utf-8"
    )
    for cfg in (tmp_path / "quant.cfg", tmp_path / "config.json", {"skip_layers": [name]}):
        result = quantize_onnx(odd.model, cfg, calibration=odd.feeds)
        assert list(result.plan.layers) == expected


@pytest.mark.parametrize("name", ["names_of_nodes_odd", "names_of_tensors_odd", "names_missing"])
def test_odd_names_pass_through_the_command_line(tmp_path, capfd, name):
    odd = next(build() for build in ODD_GRAPHS if build.__name__ == name)
    path = saved(odd.model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", image=next(iter(odd.feeds[0].values())))
    np.save(tmp_path / "data.npy", next(iter(odd.feeds[0].values())))
    arguments = ["calibration", "-q", f"--model={path}", f"--save_path={tmp_path}/out/", f"--data={tmp_path}/data.npy"]
    assert cli.main(arguments) == 0
    assert capfd.readouterr().err == ""
    assert len(os.listdir(tmp_path / "out")) == 5
