"""quantize_onnx from end to end: what it gives, what it writes, and what does not change it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import initializers, model, run, sqnr
from odd_graphs import NOT_IN_ORT, ODD_GRAPHS, REFUSED, save_with_external_data
from onnx import AttributeProto, TensorProto

import amct_onnx
from amct_onnx import ConfigError, Hfmg, LayerConfig, ModelError, QuantConfig, compare_models, quantize_onnx
from amct_onnx.formats.amct_json import read_json
from amct_onnx.formats.record import parse_record, read_record
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver

ROOT = Path(amct_onnx.__file__).parents[1]
DIGITS = ROOT / "models" / "digits"
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt", "config.json")
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 3, 8, 8)).astype(np.float32)


def odd_graph(name):
    return next(build for build in (*ODD_GRAPHS, *REFUSED, *NOT_IN_ORT) if build.__name__ == name)()


def network(first="conv1", second="conv2", middle="relu"):
    """Two convolutions around a Relu, named at will."""
    m = model(
        """
        g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
          [a] c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
          [b] r = Relu (c)
          [c] y = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
        }
        """,
        {
            "w1": np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float32),
            "b1": np.random.default_rng(2).normal(size=3).astype(np.float32),
            "w2": np.random.default_rng(3).normal(size=(3, 3, 3, 3)).astype(np.float32),
            "b2": np.random.default_rng(4).normal(size=3).astype(np.float32),
        },
    )
    for node, name in zip(m.graph.node, (first, middle, second), strict=True):
        node.name = name
    return m


def as_bytes(m):
    return m.SerializeToString(deterministic=True)


def models_of(result):
    return [
        m if isinstance(m, onnx.ModelProto) else onnx.load(m) for m in (result.deploy_model, result.fake_quant_model)
    ]


def everything(result):
    """Models, record and configuration of a result in memory, to compare."""
    return [*(as_bytes(m) for m in models_of(result)), result.record, result.config]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread):
    """Every test of this file."""


@pytest.fixture(scope="module")
def digits():
    """The digits network, quantized in memory."""
    return quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", measure_layers=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The digits network, quantized into a directory that was not there: (directory, result)."""
    folder = tmp_path_factory.mktemp("written") / "new" / "deep"
    result = quantize_onnx(
        DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", save_path=folder / "net", measure_layers=True
    )
    return folder, result


# The result


def test_a_result_in_memory_holds_models_and_texts(digits):
    assert all(isinstance(m, onnx.ModelProto) for m in (digits.deploy_model, digits.fake_quant_model))
    assert isinstance(digits.record, str)
    assert isinstance(digits.config, str)
    layers = ["stem.conv", "depthwise.conv", "pointwise.conv", "down.conv", "pool", "classifier"]
    assert list(digits.plan.layers) == layers
    assert list(digits.params) == layers
    assert list(digits.output_errors) == ["logits"]
    assert digits.output_errors["logits"].sqnr > 30
    assert digits.params["pool"].weight is None
    assert digits.params["stem.conv"].weight.axis == 0
    assert digits.params["classifier"].weight.axis is None


def test_a_result_on_disk_is_the_same_byte_for_byte(digits, written):
    folder, result = written
    names = [f"net_{name}" for name in FILES]
    assert sorted(os.listdir(folder)) == sorted(names)
    paths = (result.deploy_model, result.fake_quant_model, result.record, result.config)
    assert list(paths) == [folder / name for name in names]
    for m, path in zip(models_of(digits), paths, strict=False):
        assert onnx.load(path) == m
        assert path.read_bytes() == as_bytes(m)
    assert result.record.read_text(encoding="utf-8") == digits.record
    assert result.config.read_text(encoding="utf-8") == digits.config
    assert result.plan == digits.plan
    assert result.output_errors == digits.output_errors
    assert result.layer_errors == digits.layer_errors


def test_quantizing_again_gives_the_same_bytes(digits):
    again = quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz")
    assert everything(again) == everything(digits)


def test_every_layer_is_measured_where_asked_for_and_none_elsewhere(digits):
    assert list(digits.layer_errors) == list(digits.plan.layers)
    assert all(error.sqnr > 20 for error in digits.layer_errors.values())
    assert quantize_onnx(network(), calibration=IMAGES).layer_errors == {}


def test_the_digits_are_told_apart_as_well_as_before(digits):
    test = np.load(DIGITS / "test.npz")
    feed = {"image": test["image"]}
    found = run(digits.fake_quant_model, feed)["logits"].argmax(axis=1)
    before = run(onnx.load(DIGITS / "digits.onnx"), feed)["logits"].argmax(axis=1)
    accuracy = [(labels == test["label"]).mean() for labels in (before, found)]
    assert accuracy[1] > accuracy[0] - 0.01


def test_the_errors_of_the_outputs_are_those_of_the_first_batch():
    batches = [IMAGES[:5], IMAGES[5:] * 3]
    result = quantize_onnx(network(), calibration=batches)
    expected = compare_models(network(), result.fake_quant_model, [{"x": batches[0]}])
    assert result.output_errors == expected.outputs


def test_a_source_that_reuses_its_array_does_not_disturb_them():
    buffer = np.empty_like(IMAGES[:4])

    def refill():
        for first in (0, 4, 8):
            buffer[:] = IMAGES[first : first + 4]
            yield {"x": buffer}

    copied = quantize_onnx(network(), calibration=np.split(IMAGES, 3))
    reused = quantize_onnx(network(), calibration=refill())
    assert everything(reused) == everything(copied)
    assert reused.output_errors == copied.output_errors


# What the caller handed over


@pytest.mark.parametrize(
    "name", ["names_missing", "shared_weight", "bn_mul_add", "weights_in_constant_nodes", "opset9"]
)
def test_the_callers_model_stays_as_it_is(name):
    case = odd_graph(name)
    before = as_bytes(case.model)
    quantize_onnx(case.model, calibration=case.feeds)
    assert as_bytes(case.model) == before


def test_the_callers_arrays_stay_as_they_are():
    batches = [IMAGES[:6].copy(), IMAGES[6:].copy()]
    for batch in batches:
        batch.flags.writeable = False
    quantize_onnx(network(), calibration=batches)
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES)


def test_the_callers_files_stay_as_they_are(tmp_path):
    case = odd_graph("external_data")
    path = save_with_external_data(case, tmp_path)
    np.savez(tmp_path / "data.npz", x=case.feeds[0]["x"])
    (tmp_path / "quant.cfg").write_text("batch_num: 1")
    before = tree(tmp_path)
    quantize_onnx(path, tmp_path / "quant.cfg", calibration=tmp_path / "data.npz", save_path=tmp_path / "net")
    after = tree(tmp_path)
    assert {name: content for name, content in after.items() if name in before} == before
    assert sorted(set(after) - set(before)) == sorted(f"net_{name}" for name in FILES)


# Where the files go


@pytest.mark.parametrize("as_text", [True, False], ids=["text", "path"])
def test_a_prefix_stands_in_front_of_every_name(tmp_path, as_text):
    target = tmp_path / "a" / "b" / "net"
    result = quantize_onnx(network(), calibration=IMAGES, save_path=str(target) if as_text else target)
    assert sorted(os.listdir(target.parent)) == sorted(f"net_{name}" for name in FILES)
    assert result.record == target.parent / "net_record.txt"


def test_a_directory_with_a_slash_behind_it_takes_names_without_a_prefix(tmp_path):
    quantize_onnx(network(), calibration=IMAGES, save_path=f"{tmp_path}/new/")
    assert sorted(os.listdir(tmp_path / "new")) == sorted(FILES)


def test_a_prefix_alone_goes_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = quantize_onnx(network(), calibration=IMAGES, save_path="net")
    assert sorted(os.listdir(tmp_path)) == sorted(f"net_{name}" for name in FILES)
    assert result.deploy_model.exists()


@pytest.mark.parametrize("save_path", [".", "..", "sub/.", "sub/.."])
def test_dots_are_a_directory_and_no_prefix(tmp_path, monkeypatch, save_path):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    quantize_onnx(network(), calibration=IMAGES, save_path=save_path)
    assert set(FILES) <= {path.name for path in Path(save_path).resolve().iterdir()}


def test_odd_prefixes_are_taken_as_they_are(tmp_path):
    for prefix in ("a b", "网络", "v1.2", "-q", "{x}"):
        result = quantize_onnx(network(), calibration=IMAGES[:1], save_path=tmp_path / prefix)
        assert result.config.name == f"{prefix}_config.json"
        assert result.config.exists()
    assert len(os.listdir(tmp_path)) == 5 * len(FILES)


def test_older_results_are_replaced_and_nothing_else_is_touched(tmp_path):
    mine = {f"net_{name}": b"older" for name in FILES}
    others = {
        "net.onnx": b"model",
        "net_quant.json": b"of another tool",
        "record.txt": b"of another prefix",
        "net_deploy_model.onnx.bak": b"kept",
        ".amct_onnx-left": b"of somebody else",
        "net": None,
        "net/net_record.txt": b"deeper",
    }
    (tmp_path / "net").mkdir()
    for name, content in (mine | others).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    quantize_onnx(network(), calibration=IMAGES, save_path=tmp_path / "net")
    after = tree(tmp_path)
    assert {name: after[name] for name in others} == others
    assert set(after) == set(mine) | set(others)
    assert all(after[name] != b"older" for name in mine)


def test_a_second_run_into_the_same_place_leaves_the_same_files(tmp_path):
    for _ in range(2):
        quantize_onnx(network(), calibration=IMAGES, save_path=tmp_path / "net")
        first = tree(tmp_path)
    assert tree(tmp_path) == first


def test_the_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    quantize_onnx(network(), calibration=IMAGES, save_path=tmp_path / "net")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_the_model_that_is_read_is_not_overwritten_by_its_own_result(tmp_path):
    path = tmp_path / "net_deploy_model.onnx"
    onnx.save_model(network(), path)
    before = path.read_bytes()
    with pytest.raises(amct_onnx.OutputError, match="net_deploy_model"):
        quantize_onnx(path, calibration=IMAGES, save_path=tmp_path / "net")
    assert path.read_bytes() == before


# record.txt and config.json


def test_the_record_holds_the_parameters_of_every_layer(digits, written):
    records = read_record(written[1].record)
    assert list(records) == list(digits.params)
    for name, params in digits.params.items():
        record = records[name]
        assert np.float32(record.scale_d) == params.activation.scale
        assert record.offset_d == params.activation.offset
        expected = np.ones(1, np.float32) if params.weight is None else params.weight.scale.ravel()
        np.testing.assert_array_equal(np.array(record.scale_w, np.float32), expected)
        assert set(record.offset_w) == {0}


def test_the_configuration_file_lists_what_was_decided(digits, written):
    config = read_json(written[1].config)
    assert config.only_layers == tuple(sorted(digits.plan.layers))
    for name, layer in digits.plan.layers.items():
        block = config.override_layer_configs[name]
        assert (block.activation, block.weight, block.balancer) == (layer.activation, layer.weight, layer.balancer)


@pytest.mark.parametrize("name", ["names_of_nodes_odd", "names_clash_with_numbering", "names_missing"])
def test_odd_layer_names_come_back_from_both_files(name):
    case = odd_graph(name)
    result = quantize_onnx(case.model, calibration=case.feeds)
    assert list(parse_record(result.record, "record.txt")) == list(result.plan.layers)
    assert [key for key, value in json.loads(result.config).items() if isinstance(value, dict)] == sorted(
        result.plan.layers
    )


OWN = {"wide_fusion": True, "correct_biases": True}
"""What the own preset does that no file of AMCT's can say."""

AS_CFG = {
    "nothing asked for": {},
    "batch_num": {"batch_num": 2},
    "symmetric": {"activation_offset": False},
    "layers skipped": {"skip_layers": ["conv2"]},
    "no fusion": {"do_fusion": False},
    "one fusion skipped": {"skip_fusion_layers": ["conv1"]},
    "fp16 scales": {"fakequant_precision_mode": "FORCE_FP16_QUANT"},
}


@pytest.mark.parametrize("options", AS_CFG.values(), ids=AS_CFG.keys())
def test_the_configuration_file_as_cfg_gives_the_same_result(tmp_path, options):
    case = odd_graph("bn_after_conv")
    first = quantize_onnx(case.model, calibration=case.feeds, save_path=tmp_path / "net", **options)
    again = quantize_onnx(case.model, first.config, calibration=case.feeds, correct_biases=True)
    assert models_of(first) == models_of(again)
    assert first.record.read_text(encoding="utf-8") == again.record
    assert first.config.read_text(encoding="utf-8") == again.config


@pytest.mark.parametrize("name", ["bn_after_up", "bn_after_gemm", "conv_3d", "relu6_depthwise", "hard_swish"])
def test_so_it_does_for_every_kind_of_layer(name):
    case = odd_graph(name)
    first = quantize_onnx(case.model, calibration=case.feeds)
    again = quantize_onnx(case.model, json.loads(first.config), calibration=case.feeds, **OWN)
    assert (again.record, again.config) == (first.record, first.config)
    assert models_of(again) == models_of(first)


def test_a_layer_that_turned_out_to_stay_float_is_asked_for_again():
    source = network()
    next(t for t in source.graph.initializer if t.name == "b1").CopyFrom(
        onnx.numpy_helper.from_array(np.full(3, 1e9, np.float32), "b1")
    )
    options = {"wide_fusion": True, "calibration": [{"x": IMAGES}]}
    first = quantize_onnx(source, {"common_config": {"arq_quantize": {"channel_wise": False}}}, **options)
    assert "bias leaves int32" in first.plan.skipped["conv1"]
    assert json.loads(first.config)["conv1"]["quant_enable"] is True
    again = quantize_onnx(source, json.loads(first.config), **options)
    assert everything(again) == everything(first)
    assert again.plan.skipped == first.plan.skipped


@pytest.mark.parametrize("activation", [Ifmr(), Ifmr(asymmetric=False, num_bits=16), Hfmg(num_of_bins=1024)])
def test_a_layer_whose_input_no_scale_of_the_chip_fits_stays_float(activation):
    source = network()
    source.graph.node[1].CopyFrom(onnx.helper.make_node("Mul", ["c", "size"], ["r"], name="relu"))
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e12), "size"))
    result = quantize_onnx(source, calibration=[{"x": IMAGES}], common_config=LayerConfig(activation=activation))
    assert list(result.plan.layers) == ["conv1"]
    assert "the largest scale of the chip" in result.plan.skipped["conv2"]
    assert result.output_errors["y"].sqnr > 30


@pytest.mark.parametrize("activation", [Ifmr(), Hfmg()])
def test_a_layer_whose_input_is_always_zero_is_quantized(activation):
    zeros = [{"x": np.zeros_like(IMAGES)}]
    result = quantize_onnx(network(), calibration=zeros, common_config=LayerConfig(activation=activation))
    assert result.params["conv1"].activation.scale == 1
    assert result.output_errors["y"].sqnr > 30


def test_a_layer_called_like_a_setting_is_refused_before_anything_is_computed(tmp_path):
    def no_data():
        raise AssertionError("the data were read")
        yield

    with pytest.raises(ConfigError, match="'batch_num'"):
        quantize_onnx(network(first="batch_num"), calibration=no_data(), save_path=tmp_path / "net")
    assert tree(tmp_path) == {}


def test_options_replace_what_the_configuration_says():
    cfg = {"skip_layers": ["conv1"], "activation_offset": False}
    result = quantize_onnx(network(), cfg, calibration=IMAGES, skip_layers=["conv2"], batch_num=1)
    assert list(result.plan.layers) == ["conv1"]
    assert result.plan.layers["conv1"].activation.asymmetric is False
    assert result.plan.batch_num == 1


def test_a_ready_made_configuration_is_taken():
    config = QuantConfig(activation_offset=False)
    assert everything(quantize_onnx(network(), config, calibration=IMAGES)) == everything(
        quantize_onnx(network(), {"activation_offset": False}, calibration=IMAGES)
    )


# What must not change the result

PRINT_DIGESTS = """
import hashlib, os, sys
import onnxruntime
threads = int(sys.argv[1])
plain = onnxruntime.SessionOptions
def options():
    made = plain()
    made.intra_op_num_threads = threads
    return made
onnxruntime.SessionOptions = options
os.cpu_count = lambda: threads
sys.path.insert(0, sys.argv[2])
import odd_graphs
from amct_onnx import quantize_onnx
for build in odd_graphs.ODD_GRAPHS:
    if build.__name__ in ("residual_chain", "input_int64_tokens", "if_bodies", "split_and_merge", "pool_pads"):
        case = build()
        result = quantize_onnx(case.model, calibration=case.feeds, progress=False)
        models = (result.deploy_model, result.fake_quant_model)
        parts = [*(m.SerializeToString() for m in models), result.record.encode(), result.config.encode()]
        print(build.__name__, *(hashlib.sha256(part).hexdigest() for part in parts))
        print(list(result.plan.layers), list(result.plan.skipped.items()), list(result.params))
"""


def test_the_number_of_threads_and_the_hash_seed_do_not_matter():
    running = []
    for threads, seed in ((1, "0"), (3, "4711")):
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "OMP_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(min(threads, 2)),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", PRINT_DIGESTS, str(threads), str(ROOT / "tests")]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0][0].count(b"\n") == 10
    assert outputs[0][0] == outputs[1][0]


SPLITS = ([12], [1] * 12, [4, 4, 4], [5, 7], [7, 5], [11, 1])


def split(array, sizes):
    return np.split(array, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("settings", [{}, {"max_percentile": 0.99, "min_percentile": 0.98}], ids=["all", "percentile"])
def test_an_ifmr_observer_does_not_see_how_the_data_were_split(asymmetric, settings):
    data = np.random.default_rng(5).standard_t(3, size=(12, 3, 40, 40)).astype(np.float32)
    found = set()
    for sizes in SPLITS:
        observer = IfmrObserver(Ifmr(**settings), asymmetric=asymmetric)
        for batch in split(data, sizes):
            observer.update(batch)
        params = observer.params()
        found.add((params.scale.tobytes(), int(params.offset)))
    assert len(found) == 1


def test_a_layer_over_the_graph_input_gets_the_same_scale_however_the_data_were_split():
    found = set()
    for sizes in SPLITS:
        params = quantize_onnx(network(), calibration=split(IMAGES, sizes)).params["conv1"].activation
        found.add((params.scale.tobytes(), int(params.offset)))
    assert len(found) == 1


def test_the_order_of_the_batches_does_not_matter_to_ifmr():
    batches = split(IMAGES, [5, 4, 3])
    found = [quantize_onnx(network(), calibration=b).params["conv1"].activation for b in (batches, batches[::-1])]
    assert found[0].scale == found[1].scale
    assert found[0].offset == found[1].offset


def test_only_batch_num_batches_are_looked_at():
    first = quantize_onnx(network(), calibration=[IMAGES[:4]])
    of_two = quantize_onnx(network(), calibration=[IMAGES[:4], IMAGES[4:] * 100], batch_num=1)
    assert of_two.record == first.record


@pytest.mark.parametrize("fold", [True, False])
def test_noise_inside_the_model_is_the_same_in_every_run(fold):
    """As speech synthesis and other generative networks have it; folding moves the node to another place."""
    m = model(
        """
        g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
          [conv1] a = Conv <pads = [1, 1, 1, 1]> (x, w)
          [norm] b = BatchNormalization (a, one, one, one, one)
          [noise] n = RandomNormalLike (b)
          [add] c = Add (b, n)
          [conv2] y = Conv <pads = [1, 1, 1, 1]> (c, v)
        }
        """,
        {
            "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
            "one": np.ones(4, np.float32),
            "v": np.random.default_rng(1).normal(size=(4, 4, 3, 3)).astype(np.float32),
        },
    )
    batches = [*split(IMAGES, [7, 5]), *[np.random.default_rng(n).normal(size=IMAGES.shape) for n in range(20)]]
    batches = [np.asarray(batch, np.float32) for batch in batches]
    results = [quantize_onnx(m, calibration=batches, do_fusion=fold) for _ in range(3)]
    assert everything(results[0]) == everything(results[1]) == everything(results[2])
    with ThreadPoolExecutor(2) as executor:
        shared = [quantize_onnx(m, calibration=batches, do_fusion=fold, executor=executor) for _ in range(3)]
    assert everything(shared[0]) == everything(shared[1]) == everything(shared[2])
    assert results[0].output_errors == results[1].output_errors
    assert results[0].output_errors["y"].sqnr > 30


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_changes_nothing_and_keeps_off_the_standard_output(capfd, progress):
    result = quantize_onnx(network(), calibration=split(IMAGES, [6, 6]), progress=progress)
    assert everything(result) == everything(quantize_onnx(network(), calibration=split(IMAGES, [6, 6])))
    assert capfd.readouterr().out == ""


def test_a_model_by_path_gives_what_it_gives_in_memory(tmp_path):
    case = odd_graph("external_data")
    path = save_with_external_data(case, tmp_path)
    in_memory = quantize_onnx(case.model, calibration=case.feeds)
    for source in (path, str(path)):
        assert everything(quantize_onnx(source, calibration=case.feeds)) == everything(in_memory)


# Batch sizes and element types


def test_a_free_batch_stays_free():
    case = odd_graph("base")
    result = quantize_onnx(case.model, calibration=case.feeds[:1])
    for size in (1, 2, 7):
        feed = {"x": np.resize(case.feeds[0]["x"], (size, 3, 16, 16))}
        (values,) = run(result.fake_quant_model, feed).values()
        assert values.shape == (size, 10)


def test_a_fixed_batch_stays_fixed():
    case = odd_graph("batch_fixed")
    for m in models_of(quantize_onnx(case.model, calibration=case.feeds)):
        assert [d.dim_value for d in m.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("input_int64_tokens", {"tokens": TensorProto.INT64, "mask": TensorProto.INT64}),
        ("input_int32", {"x": TensorProto.INT32}),
        ("input_uint8", {"x": TensorProto.UINT8}),
        ("float16_model", {"x": TensorProto.FLOAT16}),
    ],
)
def test_inputs_keep_their_element_type(name, types):
    case = odd_graph(name)
    result = quantize_onnx(case.model, calibration=case.feeds)
    for m in models_of(result):
        assert {value.name: value.type.tensor_type.elem_type for value in m.graph.input} == types
    run(result.fake_quant_model, case.feeds[0])


# Over all odd graphs


@pytest.fixture(scope="module")
def quantized():
    """Builder -> (case, result of the own preset with every layer measured), each computed once."""
    found = {}

    def of(build):
        if build not in found:
            case = build()
            found[build] = case, quantize_onnx(case.model, calibration=case.feeds, measure_layers=True)
        return found[build]

    return of


each_odd_graph = pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)


@each_odd_graph
def test_the_own_preset_keeps_every_output_within_35_db(build, quantized):
    case, result = quantized(build)
    errors = compare_models(case.model, result.fake_quant_model, case.feeds, layers=False).outputs
    assert list(errors) == list(dict.fromkeys(value.name for value in case.model.graph.output))
    assert {name: error.sqnr for name, error in errors.items() if not error.sqnr >= 35} == {}


@each_odd_graph
def test_every_quantized_layer_is_measured_against_its_own_float_values(build, quantized):
    _, result = quantized(build)
    assert list(result.layer_errors) == list(result.plan.layers)
    assert {name: error.sqnr for name, error in result.layer_errors.items() if not error.sqnr >= 20} == {}


@each_odd_graph
def test_inputs_and_outputs_keep_names_shapes_types_and_order(build, quantized):
    case, result = quantized(build)
    given = {t.name for t in case.model.graph.initializer}
    for m in models_of(result):
        assert list(m.graph.input) == [value for value in case.model.graph.input if value.name not in given]
        assert list(m.graph.output) == list(case.model.graph.output)


@each_odd_graph
def test_optimizations_of_onnxruntime_do_not_change_the_numbers(build, quantized):
    """A fused Conv and Mul rounds elsewhere by a bit of float32, never by a step of the quantization."""
    case, result = quantized(build)
    plain = run(result.fake_quant_model, case.feeds[0], optimize=False)
    fast = run(result.fake_quant_model, case.feeds[0])
    for name, values in plain.items():
        assert sqnr(values, fast[name]) > 100


@each_odd_graph
def test_the_opset_is_kept_where_atc_reads_it(build, quantized):
    case, result = quantized(build)
    asked = next(entry.version for entry in case.model.opset_import if entry.domain == "")
    for m in models_of(result):
        (found,) = (entry.version for entry in m.opset_import if entry.domain in ("", "ai.onnx"))
        assert found == min(max(asked, 11), 18)


@each_odd_graph
def test_the_deploy_model_is_of_the_form_that_atc_reads(build, quantized):
    _, result = quantized(build)
    deploy = result.deploy_model
    nodes, constants = {node.name: node for node in deploy.graph.node}, initializers(deploy)
    assert len(nodes) == len(deploy.graph.node), "node names are unique"
    producers = {name: node for node in deploy.graph.node for name in node.output}
    for name, layer in result.plan.layers.items():
        node = nodes[name]
        quant = producers[node.input[0]]
        assert_quant(quant, result.params[name].activation)
        assert quant.name.removesuffix(".quant") in result.plan.layers
        dequant = nodes[f"{name}.dequant"]
        assert dequant.input[1] == f"{name}.dequant.param"
        scale = assert_dequant(dequant, constants)
        expected = result.params[name].activation.scale * (
            np.ones(1, np.float32) if layer.op_type == "AveragePool" else result.params[name].weight.scale.ravel()
        )
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        if layer.op_type == "AveragePool":
            continue
        assert constants[node.input[1]].dtype == np.int8
        last = producers[dequant.input[0]]
        assert last is node or (node.op_type == "MatMul" and last.op_type == "Add")
        bias = last.input[1] if last is not node else node.input[2] if len(node.input) > 2 else ""
        if bias:
            assert constants[bias].dtype == np.int32
            assert constants[bias].ndim == 1
    ascend = [node.op_type for node in deploy.graph.node if node.op_type.startswith("Ascend")]
    assert ascend.count("AscendDequant") == len(result.plan.layers)
    assert ascend.count("AscendQuant") <= len(result.plan.layers)


def assert_quant(quant, params):
    assert (quant.op_type, quant.domain) == ("AscendQuant", "")
    attributes = {attribute.name: attribute for attribute in quant.attribute}
    assert {name: attribute.type for name, attribute in attributes.items()} == {
        "scale": AttributeProto.FLOAT,
        "offset": AttributeProto.FLOAT,
        "dst_type": AttributeProto.STRING,
    }
    assert np.float32(attributes["scale"].f) == np.float32(1) / np.float32(params.scale)
    assert attributes["offset"].f == params.offset
    assert attributes["dst_type"].s == b"INT8"


def assert_dequant(dequant, constants):
    """The scales that it holds."""
    assert (dequant.op_type, dequant.domain) == ("AscendDequant", "")
    (attribute,) = dequant.attribute
    assert (attribute.name, attribute.type) == ("dtype", AttributeProto.INT)
    words = constants[dequant.input[1]]
    assert words.dtype == np.uint64
    assert words.ndim == 1
    assert not (words >> np.uint64(32)).any()
    return words.astype(np.uint32).view(np.float32)


@each_odd_graph
def test_the_fake_quant_model_holds_standard_operators_only_and_passes_the_checker(build, quantized):
    _, result = quantized(build)
    onnx.checker.check_model(result.fake_quant_model)
    domains = {node.domain for node in result.fake_quant_model.graph.node}
    assert domains <= {""}
    assert not any(node.op_type.startswith("Ascend") for node in result.fake_quant_model.graph.node)


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_a_model_without_anything_to_quantize_is_refused(build):
    case = build()
    with pytest.raises(ModelError, match="no layer"):
        quantize_onnx(case.model, calibration=case.feeds)


@pytest.mark.parametrize("build", NOT_IN_ORT, ids=lambda build: build.__name__)
def test_a_model_whose_node_names_repeat_is_quantized_under_names_with_numbers(build):
    case = build()
    result = quantize_onnx(case.model, calibration=case.feeds)
    names = [node.name for node in result.deploy_model.graph.node]
    assert len(set(names)) == len(names)
    for node in case.model.graph.node:
        node.name = ""
    errors = compare_models(case.model, result.fake_quant_model, case.feeds, layers=False).outputs
    assert all(error.sqnr >= 35 for error in errors.values())


# Models that are quantized already, or carry names of ours


def test_a_quantized_model_is_not_quantized_again():
    result = quantize_onnx(network(), calibration=IMAGES)
    for m in models_of(result):
        with pytest.raises(ModelError, match="quantized already"):
            quantize_onnx(m, calibration=IMAGES)


@pytest.mark.parametrize(
    ("first", "middle", "second"),
    [
        ("conv", "conv.quant", "other"),
        ("conv", "conv.dequant", "other"),
        ("conv", "relu", "conv.quant"),
        ("conv", "relu", "conv.dequant"),
        ("conv.dequant", "relu", "conv"),
        ("conv", "conv.quant.fakequant.mul", "other"),
        ("conv", "conv.fakedequant.mul", "other"),
    ],
)
def test_names_that_end_like_those_of_inserted_nodes_do_no_harm(first, middle, second):
    """The nodes of ours keep their names; the others get a number."""
    result = quantize_onnx(network(first, second, middle), calibration=IMAGES)
    assert len(result.plan.layers) == 2
    assert "conv" in result.plan.layers
    for m in models_of(result):
        names = [node.name for node in m.graph.node]
        assert sorted({name for name in names if names.count(name) > 1}) == []
    assert result.output_errors["y"].sqnr > 35


# Outputs that quantization may change in kind, not only by a little


def half_precision_network(depth):
    """A float16 chain of convolutions, each with a BatchNormalization to be folded."""
    rng = np.random.default_rng(depth)
    lines, values, x = [], {}, "x"
    for i in range(depth):
        values[f"w{i}"] = rng.uniform(-1, 1, size=(16, 16 if i else 3, 3, 3)) * np.sqrt(6 / (144 if i else 27))
        values[f"s{i}"], values[f"v{i}"] = rng.uniform(0.5, 1.5, 16), rng.uniform(0.5, 2, 16)
        values[f"b{i}"], values[f"m{i}"] = rng.normal(size=(2, 16)) * 0.3
        lines.append(f"[conv{i}] c{i} = Conv <pads = [1, 1, 1, 1]> ({x}, w{i})")
        lines.append(f"[bn{i}] n{i} = BatchNormalization (c{i}, s{i}, b{i}, m{i}, v{i})")
        lines.append(f"[relu{i}] r{i} = Relu (n{i})")
        x = f"r{i}"
    lines.append(f"[mean] y = GlobalAveragePool ({x})")
    text = f"g (float16[N, 3, 16, 16] x) => (float16[N, 16, 1, 1] y) {{ {' '.join(lines)} }}"
    return model(text, {name: value.astype(np.float16) for name, value in values.items()})


@pytest.mark.parametrize("depth", [3, 6, 9, 12])
def test_a_deep_float16_network_is_not_taken_for_a_wrong_rewrite(depth):
    """Folding a BatchNormalization rounds to float16 elsewhere; that is no fault."""
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float16)
    result = quantize_onnx(half_precision_network(depth), calibration=images)
    assert len(result.plan.layers) == depth


def test_an_output_whose_shape_depends_on_the_values_is_no_error():
    """As behind NonZero and NonMaxSuppression: quantization may find one place more or less."""
    m = model(
        """
        g (float[N, 3] x) => (float[N, 4] y, int64[2, M] places) {
          [fc] y = MatMul (x, w)
          [high] above = Greater (y, limit)
          [where] places = NonZero (above)
        }
        """,
        {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "limit": np.float32(0.1)},
    )
    rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    result = quantize_onnx(m, calibration=rows)
    before, after = run(m, {"x": rows}), run(result.fake_quant_model, {"x": rows})
    assert before["places"].shape != after["places"].shape
    assert result.output_errors["y"].sqnr > 35


def test_an_output_that_is_infinite_before_and_after_is_equal():
    """As behind a mask of -inf."""
    m = model(
        """
        g (float[N, 3] x) => (float[N, 4] y) {
          [fc] a = MatMul (x, w)
          [sign] positive = Greater (x1, zero)
          [mask] y = Where (positive, a, low)
        }
        """,
        {
            "w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
            "x1": np.array([1, -1, 1, 1], np.float32),
            "zero": np.float32(0),
            "low": np.float32(-np.inf),
        },
    )
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    error = quantize_onnx(m, calibration=rows).output_errors["y"]
    assert error.sqnr > 35
    assert np.isfinite(error.largest)


def test_outputs_that_quantization_makes_infinite_are_refused(tmp_path):
    """The small inputs round to 0, and the model divides by them."""
    m = model(
        "g (float[N, 1] x) => (float[N, 1] y) { [fc] a = MatMul (x, w) [divide] y = Reciprocal (a) }",
        {"w": np.ones((1, 1), np.float32)},
    )
    rows = np.array([[100], [0.1], [0.2], [50]], np.float32)
    with pytest.raises(ModelError, match=r"'y'.*finite"):
        quantize_onnx(m, calibration=rows, save_path=tmp_path / "net")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("kind", ["STRING", "BOOL", "INT64"])
def test_outputs_that_are_no_numbers_of_a_scale_are_compared_as_far_as_they_can_be(kind):
    m = model(
        f"g (float[N, 3] x) => (float[N, 4] y, float[N, 4] z) {{ [fc] y = MatMul (x, w) "
        f"[cast] z = Cast <to = {TensorProto.DataType.Value(kind)}> (y) }}",
        {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)},
    )
    m.graph.output[1].type.tensor_type.elem_type = TensorProto.DataType.Value(kind)
    result = quantize_onnx(m, calibration=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    assert result.output_errors["y"].sqnr > 35
