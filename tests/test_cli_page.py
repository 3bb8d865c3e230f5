"""docs/cli.md: its examples run as they stand; and what `--help` and the completion of shells know."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import caffe_files
import numpy as np
import pytest

import amct_onnx
from amct_onnx import quantize_onnx
from amct_onnx.cli import main
from amct_onnx.cli_help import EXAMPLES

ROOT = Path(amct_onnx.__file__).parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DIGITS = ROOT / "models" / "digits"
COMMANDS = [
    "calibration",
    "convert",
    "convert-caffe",
    "plan",
    "compare",
    "verify",
    "simulate",
    "agreement",
    "completion",
]

pytestmark = pytest.mark.usefixtures("one_thread")


def examples(text):
    """The calls in a text, their lines put together."""
    whole = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in whole.splitlines() if re.match(r"\s*amct_onnx [a-z]", line)]


BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of."""
    shutil.copy(DIGITS / "digits.onnx", tmp_path / "net.onnx")
    images = np.concatenate(list(np.load(DIGITS / "calibration.npz").values()))
    for name in ("data", "bins"):
        (tmp_path / name).mkdir()
    for batch in range(2):
        np.save(tmp_path / "data" / f"{batch}.npy", images[8 * batch : 8 * batch + 8])
        images[batch : batch + 1].tofile(tmp_path / "bins" / f"{batch}.bin")
    (tmp_path / "quant.cfg").write_text("batch_num: 2\n")
    page = (ROOT / "docs" / "auto-calibration.md").read_text(encoding="utf-8")
    (tmp_path / "evaluator.py").write_text(page.split("```python\n")[1].split("```")[0])
    for name in ("calibration.npz", "test.npz"):
        shutil.copy(DIGITS / name, tmp_path / name)
    made = quantize_onnx(tmp_path / "net.onnx", calibration=images[:8], save_path=tmp_path / "made/net", qdq=True)
    shutil.move(str(made.qdq_model), tmp_path / "qat.onnx")
    shutil.rmtree(tmp_path / "made")
    layer = caffe_files.layer("InnerProduct", "inner_product_param { num_output: 3 }")
    caffe_files.written(tmp_path, caffe_files.net({"x": [1, 4]}, layer), {"l": [np.ones((3, 4)), np.ones(3)]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_of_the_page_runs(folder, capsys):
    assert {call.split()[1] for call in examples(BLOCKS)} == set(COMMANDS)
    for call in examples(BLOCKS):
        assert main(shlex.split(call)[1:]) == 0, call
    names = {path.name for path in (folder / "out").iterdir()}
    five = ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json", "record.txt", "config.json")
    assert {f"net_{name}" for name in five} <= names
    assert {f"qat_{name}" for name in five[:4]} <= names
    assert all((folder / name).is_file() for name in ("report.json", "report.html", "outputs.npz", "agreement.json"))


def test_every_command_stands_on_the_page_and_has_an_example_in_its_help(capsys):
    assert re.findall(r"^## ([\w-]+)$", PAGE, re.M) == COMMANDS
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"amct_onnx {command}" in EXAMPLES[command]
        assert EXAMPLES[command] in capsys.readouterr().out


def test_the_examples_of_the_help_run_too(folder, capsys):
    for command in COMMANDS[:-1]:
        for call in examples(EXAMPLES[command]):
            assert main(shlex.split(call.split(" && ")[0])[1:]) == 0, call


def completed(script, words):
    """What bash offers for the last of `words`."""
    setting = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{setting}; _amct_onnx; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_values_and_files(folder, capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, ["amct_onnx", ""]) == COMMANDS
    assert completed(script, ["amct_onnx", "ca"]) == ["calibration"]
    assert completed(script, ["amct_onnx", "calibration", "--data_"]) == ["--data_dir", "--data_types"]
    assert completed(script, ["amct_onnx", "calibration", "--format", ""]) == ["qdq"]
    assert completed(script, ["amct_onnx", "calibration", "--model", "net.o"]) == ["net.onnx"]
    assert completed(script, ["amct_onnx", "completion", ""]) == ["bash", "zsh", "fish"]


def test_the_other_shells_get_the_same_options(capsys):
    scripts = {}
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        scripts[shell] = capsys.readouterr().out
    assert scripts["zsh"].endswith(scripts["bash"])
    for option in re.findall(r"--([a-z0-9_-]+)", scripts["bash"]):
        assert f" -l {option} " in scripts["fish"]


@pytest.mark.parametrize("form", ["apart", "together", "shortened"])
def test_amcts_options_in_either_spelling_give_the_same(folder, form, capsys):
    options = {
        "--model": "net.onnx",
        "--save_path": "out/net",
        "--data_dir": "bins",
        "--data_types": "float32",
        "--input_shape": "image:1,1,8,8",
        "--batch_num": "2",
    }
    if form == "shortened":
        options["--data_type"] = options.pop("--data_types")
    calls = {"apart": [x for pair in options.items() for x in pair]}
    calls["together"] = calls["shortened"] = ["=".join(pair) for pair in options.items()]
    assert main(["calibration", *calls[form]]) == 0
    batches = [np.fromfile(path, np.float32).reshape(1, 1, 8, 8) for path in sorted((folder / "bins").iterdir())]
    assert (folder / "out/net_record.txt").read_text() == quantize_onnx("net.onnx", calibration=batches).record


def test_quant_json_never_replaces_what_is_read(folder, capsys):
    shutil.copy("quant.cfg", "net_quant.json")
    options = ["--model=net.onnx", "--save_path=net", "--data=data", "--calibration_config=net_quant.json"]
    assert main(["calibration", *options]) == 1
    assert "net_quant.json: is the configuration that is read" in capsys.readouterr().err
    assert not Path("net_deploy_model.onnx").exists()
