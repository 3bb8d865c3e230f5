"""convert_model: record files, AMCT's and foreign ones, drive the emission without calibration."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import initializers, model, nodes_as_text
from onnx import helper

import amct_onnx
from amct_onnx import DataError, ModelError, NotAvailableError, OutputError, RecordError, convert_model, quantize_onnx
from amct_onnx.cli import main
from amct_onnx.data import input_specs, random_feeds
from amct_onnx.formats.record import read_record

GOLDEN = Path(__file__).parent / "golden" / "ptq"
# A record of AMCT's AdaRound holds no integers: `residual_ada` is rounded otherwise there.
CASES = sorted(path.parent for path in GOLDEN.glob("*/model.onnx") if path.parent.name != "residual_ada")
DIGITS = Path(amct_onnx.__file__).parents[1] / "models" / "digits"
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt")
REWRITTEN = ("Mul", "AscendQuant", "AscendDequant", "Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")
RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread):
    """Every test of this file."""


# AMCT's records


def record_of(case, folder):
    """The case's record; where its configuration switched fusion off, it says so, which AMCT keeps to the JSON."""
    text = (case / "record.txt").read_text()
    if case.name == "mixed_no_fusion":
        text = text.replace("    act_type", "    skip_fusion: true\n    act_type", 1)
    (folder / "record.txt").write_text(text)
    return folder / "record.txt"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def golden(request, tmp_path_factory):
    record = record_of(request.param, tmp_path_factory.mktemp("golden"))
    result = convert_model(request.param / "model.onnx", record)
    return request.param, result, onnx.load(request.param / "amct_deploy_model.onnx")


def by_name(m):
    return sorted((node for node in m.graph.node if node.op_type in REWRITTEN), key=lambda node: node.name)


def test_every_golden_case_is_here():
    assert len(CASES) == 13


def test_the_deploy_model_is_amcts_to_the_last_bit(golden):
    _, result, theirs = golden
    ours = result.deploy_model
    assert [(n.op_type, n.name) for n in by_name(ours)] == [(n.op_type, n.name) for n in by_name(theirs)]
    tables = initializers(ours), initializers(theirs)
    compared = 0
    for mine, wanted in zip(by_name(ours), by_name(theirs), strict=True):
        attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in (mine, wanted)]
        assert attributes[0] == attributes[1], mine.name
        for our_name, their_name in zip(mine.input, wanted.input, strict=True):
            if their_name in tables[1]:
                np.testing.assert_array_equal(tables[0][our_name], tables[1][their_name], err_msg=mine.name)
                compared += 1
    assert compared > 10


def test_the_record_comes_out_as_it_went_in(golden):
    case, result, _ = golden
    records = read_record(case / "record.txt")
    assert set(result.params) == set(records)
    for name, record in records.items():
        assert result.params[name].activation.scale == np.float32(record.scale_d)
        assert result.params[name].activation.offset == record.offset_d
    assert result.config is None


def test_a_record_that_says_so_has_its_scales_cut_to_19_bits(converted):
    forced = entry("fc", 0.0123, scale_d=0.0457, extra='fakequant_precision_mode: "FORCE_FP16_QUANT"')
    source = network()
    result, whole = converted(forced, source), converted(entry("fc", 0.0123, scale_d=0.0457), source)
    (word,), (other,) = (initializers(r.deploy_model)["fc.dequant.param"] for r in (result, whole))
    assert word == other & ~np.uint64(0x1FFF)
    assert word != other
    scale = initializers(result.fake_quant_model)["fc.fakedequant.dqscale"]
    assert scale.view(np.uint32) == word
    assert 'fakequant_precision_mode: "FORCE_FP16_QUANT"' in result.record
    assert "fakequant" not in whole.record
    np.testing.assert_array_equal(*(initializers(r.deploy_model)["d"] for r in (result, whole)))


# The engine's own records


def test_what_the_engine_wrote_gives_the_same_files_again(tmp_path):
    run = {"calibration": DIGITS / "calibration.npz", "correct_biases": False}  # a record cannot say what it corrected
    quantize_onnx(DIGITS / "digits.onnx", save_path=tmp_path / "a", **run)
    result = convert_model(
        DIGITS / "digits.onnx",
        tmp_path / "a_record.txt",
        save_path=tmp_path / "b",
        data=DIGITS / "calibration.npz",
        wide_fusion=True,
    )
    for name in FILES:
        assert (tmp_path / f"b_{name}").read_bytes() == (tmp_path / f"a_{name}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("b_")) == sorted(
        f"b_{name}" for name in FILES
    )
    assert result.output_errors["logits"].sqnr > 30
    assert result.record == tmp_path / "b_record.txt"


def test_a_run_that_folded_nothing_is_repeated_from_its_record(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    kept = {"do_fusion": False, "correct_biases": False}
    first = quantize_onnx(path, calibration=[normal(1, 4, 6, 6)], save_path=tmp_path / "a", **kept)
    assert "BatchNormalization" in {node.op_type for node in onnx.load(first.deploy_model).graph.node}
    convert_model(path, first.record, save_path=tmp_path / "b", do_fusion=False)
    command = ["convert", "-q", "--no_fusion", "--model", path, "--record", first.record, "--save_path", tmp_path / "c"]
    assert main([str(part) for part in command]) == 0
    for name in FILES:
        written = (tmp_path / f"a_{name}").read_bytes()
        assert (tmp_path / f"b_{name}").read_bytes() == written
        assert (tmp_path / f"c_{name}").read_bytes() == written


def test_the_command_line_does_the_same(tmp_path, capfd):
    (tmp_path / "quant.cfg").write_text("activation_offset: true")
    common = ["calibration", "-q", "--model", DIGITS / "digits.onnx", "--data", DIGITS / "calibration.npz"]
    common += ["--calibration_config", tmp_path / "quant.cfg"]
    assert main([str(a) for a in (*common, "--save_path", tmp_path / "a")]) == 0
    capfd.readouterr()
    common = ["convert", "-q", "--model", DIGITS / "digits.onnx", "--record", tmp_path / "a_record.txt"]
    assert main([str(a) for a in (*common, "--save_path", tmp_path / "b")]) == 0
    said = capfd.readouterr().out
    assert "random numbers" in said
    written = (*FILES, "quant.json")
    assert said.splitlines()[-4:] == [str(tmp_path / f"b_{name}") for name in written]
    for name in written:
        assert (tmp_path / f"b_{name}").read_bytes() == (tmp_path / f"a_{name}").read_bytes()


# What a record may say


TEXT = """
g (float[N, 4, 6, 6] x) => (float[N, 3] y) {
  [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
  [norm] n = BatchNormalization(c, s, t, m, v)
  [relu] r = Relu(n)
  [pool] p = AveragePool<kernel_shape = [6, 6]>(r)
  [flat] f = Flatten(p)
  [fc] y = Gemm(f, u, d)
}
"""


def network():
    weights = {"w": normal(5, 4, 3, 3), "b": normal(5), "u": normal(5, 3), "d": normal(3)}
    weights |= {"s": normal(5), "t": normal(5), "m": normal(5), "v": np.abs(normal(5)) + 1}
    return model(TEXT, weights)


def entry(key, *scale_w, extra="", scale_d=0.05, offset_d=3):
    lines = [f"scale_d: {scale_d} offset_d: {offset_d}", *(f"scale_w: {scale} offset_w: 0" for scale in scale_w)]
    return f'record {{ key: "{key}" value {{ {" ".join(lines)} {extra} }} }}\n'


@pytest.fixture
def converted(tmp_path):
    def convert(text, source=None, **options):
        (tmp_path / "record.txt").write_text(text)
        return convert_model(network() if source is None else source, tmp_path / "record.txt", **options)

    return convert


def test_layers_in_the_record_are_quantized_and_all_others_stay_float(converted):
    result = converted(entry("fc", 0.02))
    assert list(result.plan.layers) == ["fc"]
    assert result.plan.skipped["conv"] == "the record has no factors for it"
    assert result.plan.skipped["pool"] == "the record has no factors for it"
    assert result.plan.skipped["relu"] == "Relu is not an operator that can be quantized"
    assert result.plan.skipped["norm"] == "folded into 'conv'"
    assert [line for line in nodes_as_text(result.deploy_model) if "Ascend" in line] == [
        "[fc.quant] fc.quant.output0 = AscendQuant<dst_type=INT8, offset=3.0, scale=20.0>(f)",
        "[fc.dequant] y = AscendDequant<dtype=0>(fc_output0, uint64[1])",
    ]


def test_weights_have_one_scale_or_one_for_each_channel(converted):
    one = converted(entry("conv", 0.01)).params["conv"].weight
    assert (one.scale.shape, one.axis) == ((), None)
    five = converted(entry("conv", 0.01, 0.02, 0.03, 0.04, 0.05)).params["conv"].weight
    assert (five.scale.tolist(), five.axis) == (np.array([0.01, 0.02, 0.03, 0.04, 0.05], np.float32).tolist(), 0)


def test_fusion_is_skipped_where_the_record_says_so(converted):
    for text in (
        entry("conv", 0.01, extra="skip_fusion: true"),
        entry("fc", 0.02) + 'record { key: "conv" value { skip_fusion: true } }',
    ):
        result = converted(text)
        assert "BatchNormalization" in {node.op_type for node in result.deploy_model.graph.node}
        assert result.plan.skipped["norm"] == "not folded: 'conv' is listed in skip_fusion_layers"


def test_a_pooling_takes_no_weight_or_the_scale_1(converted):
    for text in (entry("pool"), entry("pool", 1.0)):
        assert converted(text).params["pool"].weight is None


@pytest.mark.parametrize(("wts_type", "largest"), [("INT6", 31), ("INT7", 63), ("INT8", 127)])
def test_weights_may_be_narrower(converted, wts_type, largest):
    result = converted(entry("conv", 0.001, extra=f'wts_type: "{wts_type}"'))
    assert initializers(result.deploy_model)["w"].max() == largest
    assert result.params["conv"].weight.num_bits == int(wts_type[3:])


def test_shifts_of_nothing_are_nothing(converted):
    assert list(converted(entry("fc", 0.02, extra="shift_bit: 0")).plan.layers) == ["fc"]


def test_float16_layers_are_taken(converted, tmp_path):
    text = "g (float16[N, 5] x) => (float16[N, 3] y) { [fc] y = Gemm(x, u, d) }"
    source = model(text, {"u": normal(5, 3, dtype=np.float16), "d": normal(3, dtype=np.float16)})
    assert list(converted(entry("fc", 0.02, extra='op_data_type: "FLOAT16"'), source).plan.layers) == ["fc"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry("conf", 0.02), r"record of 'conf': the model has no node of that name; did you mean 'conv'"),
        (entry("norm", 0.02), r"record of 'norm': BatchNormalization cannot be quantized: .* not an operator that can"),
        (
            entry("fc", 0.02, 0.02, 0.02),
            r"record of 'fc': the number of scale_w and offset_w must be 1 for Gemm, found 3",
        ),
        (
            entry("conv", 0.1, 0.1),
            r"record of 'conv': the number of scale_w and offset_w must be 1 or 5 for Conv, found 2",
        ),
        (entry("conv"), r"record of 'conv': the number of scale_w and offset_w must be 1 or 5 for Conv, found 0"),
        (
            entry("pool", 0.5),
            r"record of 'pool': AveragePool has no weight: scale_w must be 1 or missing, found \[0\.5\]",
        ),
        (entry("fc", 0.02, offset_d=128), r"record of 'fc': offset_d must be in \[-128, 127\], found 128"),
        (entry("fc", -1), r"record of 'fc': scale_w must be a finite number above 0, found -1"),
        (entry("fc", 0.02, extra="shift_bit: 17"), r"record of 'fc': shift_bit .* must be in \[1, 16\], found 17"),
        (entry("fc", 1, extra='op_data_type: "FLOAT16"'), r"'fc': op_data_type is FLOAT16, but .* is float32"),
        (entry("fc", 1, extra='wts_type: "INT6"'), r"'fc': wts_type INT6 is for 2-D convolutions only; this is Gemm"),
        (entry("fc", 1e-20, scale_d=1e-20), r"record of 'fc': the product of .* is no normal float32"),
        (entry("fc", 1e-9, scale_d=1e-9), r"record of 'fc': its bias leaves int32"),
        ('record { key: "fc" value { skip_fusion: true } }', "no record has factors"),
        ('record { key: "fc" value { scale_w: 1 offset_w: 0 } }', r"record of 'fc': scale_d and offset_d are missing"),
        ("", "empty"),
        (entry("pool", extra='act_type: "INT16"'), "act_type INT16 is not possible for AveragePool: only 1-D and 2-D"),
        (entry("fc", 0.02, extra='wts_type: "INT4"'), "wts_type INT4 is not possible for Gemm: its number of input"),
        (
            entry("conv", 0.02, extra='wts_type: "INT4" act_type: "INT16"'),
            "wts_type INT4 is not possible for Conv: its activations have 16",
        ),
        (entry("fc:0"), "record of 'fc:0': input 0 of 'fc' cannot be quantized: Gemm is not an operator whose inputs"),
        (
            entry("fc", 0.02, extra="tensor_balance_factor: 2"),
            "record of 'fc': the number of tensor_balance_factor must be 5 for Gemm, found 1",
        ),
        (entry("pool", extra="tensor_balance_factor: 2"), "AveragePool has no weight that tensor_balance_factor could"),
        (entry("pool", extra="cluster: 1 " * 16), "AveragePool has no weight that cluster could be for"),
        (
            entry("conv", 0.02, extra='wts_type: "INT7" ' + "cluster: 1 " * 16),
            "cluster is for weights of 8 bits, found wts_type INT7",
        ),
        (entry("fc:x"), "record of 'fc:x': the model has no node of that name"),
        (
            entry("fc", 0.02, extra="is_tensor_quantize: true"),
            "record of 'fc': is_tensor_quantize is true, but the key is no",
        ),
    ],
)
def test_what_does_not_fit_is_one_error_that_names_file_and_layer(converted, text, message, tmp_path):
    with pytest.raises(RecordError, match=message) as caught:
        converted(text, save_path=tmp_path / "out" / "net")
    assert str(tmp_path / "record.txt") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        (entry("fc", 0.02, extra="shift_bit: 3"), "shift_bit other than 0"),
        (entry("fc", 0.02, extra='dst_type: "INT4"'), "dst_type INT4"),
        (entry("fc", 0.02, extra='act_type: "INT4"'), "act_type INT4"),
        ('record { key: "fc" kv_cache_value { scale: 1 offset: 0 } }', "kv_cache_value"),
    ],
)
def test_what_is_not_carried_out_yet_is_said(converted, text, wish, tmp_path):
    with pytest.raises(NotAvailableError, match=rf"record\.txt: record of 'fc.*': {wish} is not available yet"):
        converted(text)


def test_a_3d_convolution_takes_symmetric_activations(converted):
    text = "g (float[1, 2, 4, 4, 4] x) => (float[1, 3, 3, 3, 3] y) { [conv] y = Conv(x, w) }"
    source = model(text, {"w": normal(3, 2, 2, 2, 2)})
    with pytest.raises(RecordError, match=r"offset_d must be 0 for a 3-D convolution"):
        converted(entry("conv", 0.02), source)
    assert list(converted(entry("conv", 0.02, offset_d=0), source).plan.layers) == ["conv"]


def test_a_layer_that_is_gone_is_named_with_the_reason(converted):
    text = "g (float[N, 5] x) => (float[N, 3] y) { [same] t = Identity(x) [fc] y = Gemm(t, u, d) }"
    source = model(text, {"u": normal(5, 3), "d": normal(3)})
    with pytest.raises(RecordError, match="record of 'same': the node is no layer any more: Identity does nothing"):
        converted(entry("same"), source)


def test_neither_the_model_nor_the_record_is_overwritten(tmp_path):
    onnx.save(network(), tmp_path / "net.onnx")
    (tmp_path / "out_record.txt").write_text(entry("fc", 0.02))
    with pytest.raises(OutputError, match=r"out_record\.txt: is the record that is read; choose another save_path"):
        convert_model(tmp_path / "net.onnx", tmp_path / "out_record.txt", save_path=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "out_record.txt"]


def test_a_record_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RecordError, match="nowhere"):
        convert_model(network(), tmp_path / "nowhere.txt")
    with pytest.raises(RecordError, match="the record is a NoneType; give the path of a record file"):
        convert_model(network(), None)


# Data to run on


def test_the_first_batch_of_the_data_is_run(converted):
    data = [normal(2, 4, 6, 6), "never read"]
    assert converted(entry("fc", 0.02), data=data).output_errors["y"].sqnr > 0
    with pytest.raises(DataError, match="batch 0, input 'x': shape"):
        converted(entry("fc", 0.02), data=[normal(2, 3, 6, 6)])


def test_free_axes_are_tried_until_the_model_runs(converted):
    text = "g (float[N, 4, H, W] x) => (float[N, 5, P, Q] y) { [conv] y = Conv(x, w) }"
    result = converted(entry("conv", 0.02), model(text, {"w": normal(5, 4, 9, 9)}))
    assert result.output_errors["y"].sqnr > 0


def test_a_model_that_runs_on_no_random_data_asks_for_some(converted):
    text = "g (float[N, K] x) => (float[N, 5] y) { [fc] y = MatMul(x, w) }"
    source = model(text, {"w": normal(7, 5)})
    with pytest.raises(
        DataError, match=r"fails to run the model on random numbers: .*; give data that the model runs on"
    ):
        converted(entry("fc", 0.02), source)
    assert converted(entry("fc", 0.02), source, data=[normal(3, 7)]).output_errors["y"].sqnr > 0


def test_random_data_are_always_the_same_and_fit():
    text = "g (float[N, 4, H, 6] x, int64[N, 7] i, bool[3] k) => (float[N, 4, H, 6] y) { y = Relu(x) }"
    specs = input_specs(model(text))
    feeds, again = list(random_feeds(specs)), list(random_feeds(specs))
    assert [feed["x"].shape for feed in feeds][:3] == [(1, 4, 1, 6), (1, 4, 224, 6), (1, 4, 64, 6)]
    assert all(feed["i"].dtype == np.int64 and set(feed["i"].ravel()) <= {0, 1} for feed in feeds)
    assert feeds[0]["k"].dtype == np.bool_
    for one, other in zip(feeds, again, strict=True):
        np.testing.assert_equal(one, other)
    with pytest.raises(DataError, match="no random data can be made for input 'x'"):
        list(random_feeds(input_specs(model("g (string[2] x) => (string[2] y) { y = Identity(x) }"))))


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
def test_inputs_larger_than_memory_are_refused(size):
    with pytest.raises(DataError, match=r"input 'x' .* is too large for random data; give data"):
        list(random_feeds(input_specs(model(f"g (float[{size}, 4] x) => (float[{size}, 4] y) {{ y = Identity(x) }}"))))


def test_a_model_that_is_quantized_already_is_refused(tmp_path):
    (tmp_path / "record.txt").write_text(entry("fc", 0.02))
    deploy = convert_model(network(), tmp_path / "record.txt").deploy_model
    with pytest.raises(ModelError, match="quantized already"):
        convert_model(deploy, tmp_path / "record.txt")


@pytest.mark.parametrize("equalised", [False, True])
def test_a_record_of_other_weights_is_told(tmp_path, caplog, equalised):
    text = "g (float[1, 4, 6, 6] x) => (float[1, 4, 4, 4] y) { [a] h = Conv(x, w) r = Relu(h) [b] y = Conv(r, v) }"
    first, second = normal(4, 4, 1, 1), normal(4, 4, 3, 3)
    first[0] *= 200
    second[:, 0] /= 200
    given = model(text, {"w": first, "v": second})
    made = quantize_onnx(given, calibration=[normal(1, 4, 6, 6)], equalise_layers=equalised, correct_biases=False)
    (tmp_path / "record.txt").write_text(made.record)
    convert_model(given, tmp_path / "record.txt")
    told = [entry.getMessage() for entry in caplog.records if "cut off" in entry.getMessage()]
    assert len(told) == equalised
    if equalised:
        assert "'a' first, cut off more than half of the largest weights; the record seems to be of another" in told[0]
