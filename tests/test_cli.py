"""The command line: what it takes in AMCT's form and in its own, and what it prints where."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from odd_graphs import ODD_GRAPHS

import amct_onnx
from amct_onnx import quantize_onnx
from amct_onnx.cli import main
from amct_onnx.formats.record import read_record

ROOT = Path(amct_onnx.__file__).parents[1]
DIGITS = ROOT / "models" / "digits"
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt", "config.json")
PRINTED = (*FILES, "quant.json")
LAYERS = ["stem.conv", "depthwise.conv", "pointwise.conv", "down.conv", "pool", "classifier"]
COMMANDS = (
    "calibration",
    "convert",
    "convert-caffe",
    "plan",
    "compare",
    "verify",
    "simulate",
    "agreement",
    "completion",
)


def status(*arguments):
    """The exit status of a run, wrong usage included."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code


def calibration(folder, *arguments, net=DIGITS / "digits.onnx", data=DIGITS / "calibration.npz"):
    """Quantize into `folder`/out/net."""
    common = ["calibration", "--model", net, "--save_path", folder / "out" / "net"]
    return status(*common, *([] if data is None else ["--data", data]), *arguments)


def contents(folder):
    return {name: (folder / "out" / f"net_{name}").read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the function writes for the digits."""
    folder = tmp_path_factory.mktemp("expected")
    quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", save_path=folder / "out" / "net")
    return folder


def python(*arguments, folder, **environment):
    """Another process, its output in pipes."""
    command = [sys.executable, "-m", "amct_onnx", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")} | environment
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, cwd=folder)


# calibration


def test_calibration_writes_what_the_function_writes(tmp_path, expected, capfd):
    assert calibration(tmp_path) == 0
    assert contents(tmp_path) == contents(expected)
    said = capfd.readouterr()
    assert said.out.splitlines()[-5:] == [str(tmp_path / "out" / f"net_{name}") for name in PRINTED]
    assert "logits" in said.out
    assert "Traceback" not in said.err


def test_values_may_stand_behind_a_space_or_an_equals_sign(tmp_path, expected):
    for folder, form in ((tmp_path / "a", "--{}={}"), (tmp_path / "b", "--{} {}")):
        given = {"model": DIGITS / "digits.onnx", "save_path": f"{folder}/out/net", "data": DIGITS / "calibration.npz"}
        arguments = [part for pair in given.items() for part in form.format(*pair).split(" ")]
        assert status("calibration", *arguments) == 0
        assert contents(folder) == contents(expected)


def test_a_directory_with_a_slash_behind_it_takes_names_without_a_prefix(tmp_path):
    net, data = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
    assert status("calibration", "-q", "--model", net, "--data", data, "--save_path", f"{tmp_path}/out/") == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(PRINTED)


def test_a_configuration_is_followed(tmp_path, capfd):
    (tmp_path / "quant.cfg").write_text('skip_layers: "stem.conv" activation_offset: false')
    assert calibration(tmp_path, "--calibration_config", tmp_path / "quant.cfg") == 0
    records = read_record(tmp_path / "out" / "net_record.txt")
    assert list(records) == LAYERS[1:]
    assert {record.offset_d for record in records.values()} == {0}


def test_a_written_configuration_can_be_handed_in_again(tmp_path):
    (tmp_path / "quant.cfg").write_text("batch_num: 1")
    assert calibration(tmp_path / "a", "--calibration_config", tmp_path / "quant.cfg") == 0
    config = tmp_path / "a" / "out" / "net_config.json"
    assert calibration(tmp_path / "b", "--calibration_config", config) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# calibration with AMCT's options


@pytest.fixture
def raw_digits(tmp_path):
    """Four files of eight images each, as AMCT takes them."""
    images = np.load(DIGITS / "calibration.npz")["image"]
    (tmp_path / "raw").mkdir()
    for batch in range(4):
        images[8 * batch : 8 * batch + 8].tofile(tmp_path / "raw" / f"{batch}.bin")
    return tmp_path


def by_function(folder, batches):
    images = np.load(DIGITS / "calibration.npz")["image"]
    data = [images[8 * batch : 8 * batch + 8] for batch in range(batches)]
    quantize_onnx(DIGITS / "digits.onnx", calibration=data, batch_num=batches, save_path=folder / "out" / "net")
    return contents(folder)


@pytest.mark.parametrize("batch_num", [None, 1, 3])
def test_raw_files_are_read_in_amct_s_form_one_batch_unless_told(raw_digits, batch_num, tmp_path):
    three = ["--data_dir", raw_digits / "raw", "--data_types", "float32", "--input_shape", "image:8,1,8,8"]
    more = [] if batch_num is None else ["--batch_num", batch_num]
    assert calibration(raw_digits, *three, *more, data=None) == 0
    assert contents(raw_digits) == by_function(tmp_path / "by_function", batch_num or 1)


def test_options_may_be_shortened_as_amct_s_scripts_do(raw_digits):
    three = [f"--data_dir={raw_digits / 'raw'}", "--data_type=float32", "--input_shape=image:8,1,8,8"]
    assert calibration(raw_digits, *three, data=None) == 0


@pytest.fixture(scope="module")
def colons(tmp_path_factory):
    """A network of two inputs with colons and slashes in their names, and raw files for both."""
    folder = tmp_path_factory.mktemp("colons")
    rng = np.random.default_rng(0)
    m = model(
        """
        g (float[N, 3, 8, 8] a, float[N, 6] b) => (float[N, 4] y) {
          [conv] c = Conv <pads = [1, 1, 1, 1]> (a, w)
          [mean] m = GlobalAveragePool (c)
          [flat] f = Flatten (m)
          [fc] v = MatMul (b, k)
          [add] y = Add (f, v)
        }
        """,
        {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "k": rng.normal(size=(6, 4)).astype(np.float32)},
    )
    for position, (value, name) in enumerate(zip(m.graph.input, ("image:0", "scope/row:1"), strict=True)):
        m.graph.node[(0, 3)[position]].input[0] = value.name = name
    onnx.save_model(m, folder / "net.onnx")
    feeds = []
    for name in ("images", "rows"):
        (folder / name).mkdir()
    for batch in range(3):
        feed = {"image:0": rng.normal(size=(2, 3, 8, 8)), "scope/row:1": rng.normal(size=(2, 6))}
        feeds.append({name: values.astype(np.float32) for name, values in feed.items()})
        for folder_name, values in zip(("images", "rows"), feeds[-1].values(), strict=True):
            values.tofile(folder / folder_name / f"{batch}.bin")
    return folder, m, feeds


def test_several_inputs_are_separated_by_semicolons_and_names_may_hold_colons(colons, tmp_path):
    folder, m, feeds = colons
    three = [
        f"--data_dir={folder}/images;{folder}/rows",
        "--data_types=float32;float32",
        "--input_shape=image:0:2,3,8,8;scope/row:1:2,6",
    ]
    assert calibration(tmp_path, *three, "--batch_num=3", net=folder / "net.onnx", data=None) == 0
    quantize_onnx(m, calibration=feeds, batch_num=3, save_path=tmp_path / "other" / "out" / "net")
    assert contents(tmp_path) == contents(tmp_path / "other")


def test_the_inputs_may_be_listed_in_any_order(colons, tmp_path):
    folder, m, feeds = colons
    three = [
        f"--data_dir={folder}/rows;{folder}/images",
        "--data_types=float32; float32",
        "--input_shape=scope/row:1:2,6;image:0:2,3,8,8;",
    ]
    assert calibration(tmp_path, *three, net=folder / "net.onnx", data=None) == 0
    quantize_onnx(m, calibration=feeds[:1], batch_num=1, save_path=tmp_path / "other" / "out" / "net")
    assert contents(tmp_path) == contents(tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"--input_shape": "image"}, ["--input_shape", "'image'", "name:n,c,h,w"]),
        ({"--input_shape": "image:8,1,8,x"}, ["--input_shape", "'image:8,1,8,x'"]),
        ({"--input_shape": "image:8,1,0,8"}, ["--input_shape", "positive"]),
        ({"--input_shape": "image:-1,1,8,8"}, ["--input_shape", "positive"]),
        ({"--input_shape": "image:"}, ["--input_shape"]),
        ({"--input_shape": ":8,1,8,8"}, ["--input_shape"]),
        ({"--input_shape": ""}, ["0 inputs"]),
        ({"--input_shape": "image:8,1,8,8;b:2"}, ["2 inputs", "1 directories", "1 types"]),
        ({"--input_shape": "img:8,1,8,8"}, ["'img'", "image"]),
        ({"--input_shape": "image:8,1,4,4"}, ["0.bin", "2048 bytes", "512 bytes"]),
        ({"--input_shape": "image:4,1,8,16"}, ["[4, 1, 8, 16]", "[N, 1, 8, 8]"]),
        (
            {"--input_shape": "image:8,1,8,8;image:8,1,8,8", "--data_dir": "a;b", "--data_types": "float32;float32"},
            ["twice"],
        ),
        ({"--data_types": "float"}, ["--data_types", "'float'", "float32"]),
        ({"--data_types": "int32"}, ["int32", "float32", "'image'"]),
        ({"--data_dir": "nowhere"}, ["nowhere"]),
        ({"--batch_num": "5"}, ["batch_num is 5", "4 batches"]),
        ({"--batch_num": "0"}, ["batch_num", "0"]),
        ({"--data_dir": None}, ["missing", "--data_dir"]),
        ({"--data_types": None, "--input_shape": None}, ["missing", "--data_types", "--input_shape"]),
        ({"--data": "x.npz"}, ["--data excludes", "--data_dir", "--data_types", "--input_shape"]),
    ],
)
def test_what_does_not_fit_together_is_told_in_one_line(raw_digits, changed, parts, capfd):
    given = {"--data_dir": raw_digits / "raw", "--data_types": "float32", "--input_shape": "image:8,1,8,8"} | changed
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    assert calibration(raw_digits, "-q", *arguments, data=None) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"amct_onnx: [^\n]+\n", said.err)
    for part in parts:
        assert part in said.err
    assert not (raw_digits / "out").exists()


# plan


def test_plan_shows_each_layer_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert status("plan", DIGITS / "digits.onnx") == 0
    said = capfd.readouterr().out
    assert "6 layers to quantize" in said
    for layer in LAYERS:
        assert re.search(rf"{re.escape(layer)} .*int8 asymmetric ifmr", said)
    assert "Relu is not" not in said
    assert os.listdir(tmp_path) == []


def test_plan_says_why_the_others_are_left_out(tmp_path, capfd):
    (tmp_path / "quant.cfg").write_text(
        'skip_layers: "stem.conv" common_config { hfmg_quantize { asymmetric: false } }'
    )
    assert status("plan", DIGITS / "digits.onnx", "--config", tmp_path / "quant.cfg") == 0
    said = capfd.readouterr().out
    assert re.search(r"stem\.conv .*float .*listed in skip_layers", said)
    assert re.search(r"down\.conv .*int8 symmetric hfmg +.*int8 per channel", said)
    assert re.search(r"classifier .*int8 per tensor", said)


def test_plan_lists_every_node_where_asked_to(capfd):
    assert status("plan", DIGITS / "digits.onnx", "--all") == 0
    said = capfd.readouterr().out
    for node in onnx.load(DIGITS / "digits.onnx").graph.node:
        assert node.name in said


def test_plan_shows_notes_of_what_was_dropped(tmp_path, capfd):
    (tmp_path / "quant.cfg").write_text("common_config { arq_quantize { quant_bits: 7 } }")
    assert status("plan", DIGITS / "digits.onnx", "--config", tmp_path / "quant.cfg") == 0
    said = capfd.readouterr().out
    assert "int7" in said
    assert re.search(r"classifier .*quant_bits: 7", said)


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capfd):
    m = model("g (float[N, 3] x) => (float[N, 4] y) { [fc] y = MatMul (x, w) }", {"w": np.ones((3, 4), np.float32)})
    m.graph.node[0].name = "[bold]fc[/bold] [/red] :smile:"
    onnx.save_model(m, tmp_path / "net.onnx")
    assert status("plan", tmp_path / "net.onnx") == 0
    assert m.graph.node[0].name in capfd.readouterr().out


# compare


def test_compare_shows_layers_from_the_worst_on_and_outputs(expected, capfd):
    fake = expected / "out" / "net_fake_quant_model.onnx"
    assert status("compare", DIGITS / "digits.onnx", fake, "--data", DIGITS / "calibration.npz") == 0
    said = capfd.readouterr().out
    layers, outputs = said.split("outputs")
    found = re.findall(r"^\W*([\w.]+)\W+(\d+\.\d\d) ", layers, re.MULTILINE)
    assert sorted(name for name, _ in found) == sorted(LAYERS)
    assert [float(value) for _, value in found] == sorted(float(value) for _, value in found)
    assert "logits" in outputs


def test_compare_takes_raw_files_too(expected, raw_digits, capfd):
    fake = expected / "out" / "net_fake_quant_model.onnx"
    three = [f"--data_dir={raw_digits / 'raw'}", "--data_types=float32", "--input_shape=image:8,1,8,8"]
    assert status("compare", DIGITS / "digits.onnx", fake, *three, "--batch_num=4") == 0
    assert "logits" in capfd.readouterr().out


def compared(capfd, *arguments):
    """The one line that a failing comparison says."""
    assert status("compare", "-q", *arguments) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"amct_onnx: [^\n]+\n", said.err)
    return said.err


def test_compare_names_what_cannot_be_compared(expected, tmp_path, capfd):
    net, data = DIGITS / "digits.onnx", f"--data={DIGITS / 'calibration.npz'}"
    out = expected / "out"
    assert "none.onnx" in compared(capfd, net, tmp_path / "none.onnx", data)
    assert "none.onnx" in compared(capfd, tmp_path / "none.onnx", net, data)
    assert "none.npz" in compared(capfd, net, net, f"--data={tmp_path / 'none.npz'}")
    assert "AscendQuant" in compared(capfd, net, out / "net_deploy_model.onnx", data)
    other = model("g (float[N, 1, 8, 8] image) => (float[N, 1, 8, 8] other) { [relu] other = Relu (image) }")
    onnx.save_model(other, tmp_path / "other.onnx")
    assert "no output of the same name" in compared(capfd, net, tmp_path / "other.onnx", data)


def test_compare_refuses_a_model_with_other_inputs_in_one_line(tmp_path, capfd):
    other = model("g (float[N, 1, 8, 8] picture) => (float[N, 1, 8, 8] logits) { [relu] logits = Relu (picture) }")
    onnx.save_model(other, tmp_path / "other.onnx")
    data = f"--data={DIGITS / 'calibration.npz'}"
    assert "image" in compared(capfd, DIGITS / "digits.onnx", tmp_path / "other.onnx", data)


@pytest.mark.parametrize("batch_num", [0, -1])
def test_a_number_of_batches_below_one_is_refused_everywhere(tmp_path, batch_num, capfd):
    net, data = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
    for arguments in (
        ("compare", net, net, "--data", data),
        ("calibration", "--model", net, "--save_path", tmp_path / "net", "--data", data),
    ):
        assert status(*arguments, "--batch_num", batch_num) in (1, 2)
        assert "batch_num" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("batch_num", ["two", "1.5", ""])
def test_a_number_of_batches_that_is_no_number_is_wrong_usage(batch_num, capfd):
    arguments = ("compare", "a.onnx", "b.onnx", "--data", "c.npz", f"--batch_num={batch_num}")
    assert status(*arguments) == 2
    assert "--batch_num" in capfd.readouterr().err


# plan and compare: bad input


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["none.cfg"]),
        ("batch_nums: 1", ["quant.cfg", "'batch_nums'"]),
        ('skip_layers: "stem"', ["'stem'", "'stem.conv'"]),
        ("common_config { ada_quantize { reg_param: 2 } }", ["ada_quantize", "reg_param"]),
    ],
)
def test_plan_names_what_is_wrong_with_the_configuration(tmp_path, content, parts, capfd):
    path = tmp_path / ("none.cfg" if content is None else "quant.cfg")
    if content is not None:
        path.write_text(content)
    assert status("plan", DIGITS / "digits.onnx", "--config", path) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"amct_onnx: [^\n]+\n", said.err)
    for part in parts:
        assert part in said.err


# verify


def deploy_model(expected):
    return expected / "out" / "net_deploy_model.onnx", expected / "out" / "net_record.txt"


def test_verify_shows_what_it_finds_and_what_it_cannot_check(expected, capfd):
    path, record = deploy_model(expected)
    assert status("verify", path) == 0
    said = capfd.readouterr()
    assert f"{path}: 0 errors" in said.out
    assert "give the record file to check it" in " ".join(said.out.split())
    assert status("verify", path, "--record", record, "--float-model", DIGITS / "digits.onnx") == 0
    assert "give the" not in capfd.readouterr().out


def test_verify_fails_for_errors_and_if_strict_for_warnings(tmp_path, expected, capfd):
    path, _ = deploy_model(expected)
    assert status("verify", path, "--strict") == 1
    broken = onnx.load(path)
    broken.opset_import[0].version = 5
    onnx.save(broken, tmp_path / "broken.onnx")
    assert status("verify", tmp_path / "broken.onnx") == 1
    said = capfd.readouterr()
    assert "operator set 5" in said.out
    assert said.err == ""


def test_verify_writes_json_beside_the_table_or_instead(tmp_path, expected, capfd):
    path, _ = deploy_model(expected)
    assert status("verify", path, "--json", tmp_path / "report.json") == 0
    assert "not checked" in capfd.readouterr().out
    assert status("verify", path, "--json", "-") == 0
    out = capfd.readouterr().out
    assert json.loads(out)["ok"]
    assert out == (tmp_path / "report.json").read_text()


def test_verify_has_a_status_for_what_cannot_be_read_or_written(tmp_path, expected, capfd):
    path, _ = deploy_model(expected)
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    for arguments, part in (
        ([tmp_path / "none.onnx"], "no such file"),
        ([tmp_path / "net.onnx"], "not an ONNX model"),
        ([path, "--record", tmp_path / "none.txt"], "none.txt"),
        ([path, "--float-model", tmp_path / "none.onnx"], "no such file"),
        ([path, "--json", tmp_path / "net.onnx" / "report.json"], "is not a directory"),
        ([path, "--json", tmp_path], "is a directory"),
        ([path, "--json", os.devnull], "is a device or a pipe"),
    ):
        assert status("verify", *arguments) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert re.fullmatch(r"amct_onnx: [^\n]+\n", said.err)
        assert part in said.err


def test_no_file_that_is_read_is_overwritten(tmp_path, expected, capfd):
    path, record = deploy_model(expected)
    for source in (path, record):
        shutil.copy(source, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "link.json").symlink_to(path.name)
    for name in (path.name, record.name, "link.json"):
        assert (
            status("verify", tmp_path / path.name, "--record", tmp_path / record.name, "--json", tmp_path / name) == 2
        )
        assert f"{name}: --json would overwrite what is read or written besides" in capfd.readouterr().err
    (tmp_path / "link.json").unlink()
    (tmp_path / "data").mkdir()
    shutil.copy(DIGITS / "calibration.npz", tmp_path / "data" / "one.npz")
    given = ["simulate", path, "--data", tmp_path / "data", "--save"]
    assert status(*given, tmp_path / "data" / "one.npz") == 1
    shutil.rmtree(tmp_path / "data")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_an_output_that_cannot_be_written_is_no_finding(expected):
    path, _ = deploy_model(expected)
    with open("/dev/full", "wb") as full:
        for arguments, expected_status in (["verify", path, "--json", "-"], 2), (["plan", DIGITS / "digits.onnx"], 1):
            done = subprocess.run(
                [sys.executable, "-m", "amct_onnx", *map(str, arguments)],
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=False,
            )
            assert done.returncode == expected_status
            assert re.fullmatch(r"amct_onnx: the output cannot be written: [^\n]+\n", done.stderr.decode())


# Help, usage, log


@pytest.mark.parametrize("option", ["--help", "-h", "--he"])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_explains_itself(command, option, capfd):
    assert status(*command, option) == 0
    said = capfd.readouterr()
    assert said.out.startswith("usage: amct_onnx")
    assert said.err == ""
    for word in ("--model", "--save_path", "--data_dir") if command == ("calibration",) else command or COMMANDS:
        assert word in said.out


@pytest.mark.parametrize(
    "arguments", [(), ("nothing",), ("calibration",), ("plan",), ("compare", "a"), ("plan", "a", "b"), ("verify",)]
)
def test_wrong_usage_has_a_status_of_its_own(arguments, capfd):
    assert status(*arguments) == 2
    assert "usage: amct_onnx" in capfd.readouterr().err


@pytest.mark.parametrize(("option", "lines"), [("-q", 0), ("--quiet", 0), (None, 3), ("-v", 10), ("--verbose", 10)])
def test_the_log_goes_to_standard_error_as_loud_as_asked_for(tmp_path, option, lines, capfd):
    assert calibration(tmp_path, *([] if option is None else [option])) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) >= lines
    assert (len(said) == 0) is (lines == 0)
    assert any("pass " in line for line in said) is (lines == 10)
    assert any("calibrate" in line for line in said) is (lines > 0)


def test_a_quiet_run_still_warns(tmp_path, capfd):
    """The bias is beyond int32 on the scale of the one layer, which stays float."""
    m = model(
        "g (float[N, 3] x) => (float[N, 4] y, float[N, 4] z) { [tiny] y = Gemm (x, v, b) [fc] z = MatMul (x, w) }",
        {"v": np.full((3, 4), 1e-3, np.float32), "b": np.full(4, 1e6, np.float32), "w": np.ones((3, 4), np.float32)},
    )
    onnx.save_model(m, tmp_path / "net.onnx")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    assert calibration(tmp_path, "-q", net=tmp_path / "net.onnx", data=tmp_path / "data.npy") == 0
    (line,) = capfd.readouterr().err.splitlines()
    for part in ("'tiny'", "stays float", "int32"):
        assert part in line


# As a program of its own


def test_python_dash_m_runs_it(tmp_path, expected):
    arguments = ["--model", DIGITS / "digits.onnx", "--data", DIGITS / "calibration.npz", "--save_path", "out/net"]
    done = python("calibration", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(expected)
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stderr
    assert done.stdout.decode().splitlines()[-5:] == [os.path.join("out", f"net_{name}") for name in PRINTED]


def test_an_error_of_the_program_is_one_line_and_no_traceback(tmp_path):
    done = python("plan", "none.onnx", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode() == "amct_onnx: none.onnx: no such file\n"


def test_names_beyond_the_encoding_of_the_output_do_not_stop_it(tmp_path):
    """As into a pipe or a file where the locale is not UTF-8."""
    odd = next(build() for build in ODD_GRAPHS if build.__name__ == "names_of_nodes_odd")
    onnx.save_model(odd.model, tmp_path / "net.onnx")
    done = python("plan", "net.onnx", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"/model/conv/Conv:0" in done.stdout
    assert b"3 layers to quantize" in done.stdout


def test_the_command_stands_in_the_package_s_entry_points():
    assert 'amct_onnx = "amct_onnx.cli:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_number_of_batches_beside_a_configuration_is_said_not_to_count(tmp_path, capsys):
    cfg = tmp_path / "quant.cfg"
    cfg.write_text("batch_num: 1")
    digits = Path(__file__).resolve().parents[1] / "models" / "digits"
    arguments = ["calibration", "--model", str(digits / "digits.onnx"), "--data", str(digits / "calibration.npz")]
    arguments += ["--save_path", str(tmp_path / "net"), "--calibration_config", str(cfg), "--batch_num", "5"]
    assert main(arguments) == 0
    assert f"--batch_num is not used: the number of batches stands in {cfg}" in capsys.readouterr().err


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"amct_onnx {amct_onnx.__version__}\n")
