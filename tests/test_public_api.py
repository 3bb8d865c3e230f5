"""The face of the package: its names, what importing it costs, and what is shipped with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amct_onnx

ROOT = Path(amct_onnx.__file__).parents[1]
NAMES = [
    *(
        "AccuracyTarget",
        "AdaRound",
        "AmctError",
        "ArgumentError",
        "Arq",
        "ConfigError",
        "DataError",
        "EvaluatorError",
        "Dmq",
        "Hfmg",
        "Ifmr",
        "LayerConfig",
        "ModelError",
    ),
    *("NotAvailableError", "Nuq", "NuqConfig", "OutputError", "PassError", "QuantConfig", "QuantizeResult"),
    *("RecordError", "RetrainConfig", "RetrainLayerConfig", "SimulatedSession", "StrategyConfig", "TensorConfig"),
    *("TensorStrategy", "VerifyReport", "compare_models", "convert_model", "import_caffe", "import_qdq"),
    "quantize_onnx",
    "verify_deploy_model",
    # AMCT's own, step by step
    *("calibration_session", "convert_qat_model", "create_quant_config", "quantize_model", "quantize_preprocess"),
    *("accuracy_based_auto_calibration", "save_model"),
]
TRAINING_NAMES = [
    *("create_quant_retrain_config", "create_quant_retrain_model", "restore_quant_retrain_model", "retrain_onnx"),
    *("save_quant_retrain_model", "to_onnx", "to_torch"),
    *("create_prune_retrain_model", "restore_prune_retrain_model", "save_prune_retrain_model"),
    *("create_compressed_retrain_model", "restore_compressed_retrain_model", "save_compressed_retrain_model"),
    "auto_channel_prune_search",
]
HEAVY = ("torch", "onnxruntime", "numba", "onnx", "onnx_graphsurgeon", "numpy", "google.protobuf", "rich")


def python(code):
    """What another interpreter prints that runs `code`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_names_are_those_that_the_documentation_gives():
    assert sorted(amct_onnx.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_had_and_is_explained(name):
    found = getattr(amct_onnx, name)
    assert found.__name__ == name
    assert found.__doc__
    assert name in dir(amct_onnx)


def test_a_star_import_brings_exactly_these_names():
    code = "from amct_onnx import *; print(*sorted(name for name in globals() if not name.startswith('_')))"
    assert python(code).split() == sorted(NAMES)


def test_an_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="'amct_onnx' has no attribute 'quantise_onnx'"):
        _ = amct_onnx.quantise_onnx
    assert not hasattr(amct_onnx, "nothing")


def test_importing_the_package_loads_nothing_heavy():
    loaded = python("import sys, amct_onnx; dir(amct_onnx); print(*sys.modules)").split()
    assert [name for name in HEAVY if name in loaded] == []


def test_an_error_can_be_caught_without_loading_anything_heavy():
    loaded = python("import sys, amct_onnx; amct_onnx.ConfigError; print(*sys.modules)").split()
    assert [name for name in HEAVY if name in loaded] == []


def test_the_help_of_the_command_line_loads_no_onnxruntime():
    code = "import sys\nfrom amct_onnx.cli import main\ntry: main(['-h'])\nexcept SystemExit: print(*sys.modules)"
    assert "onnxruntime" not in python(code).split()


def test_types_are_shipped():
    assert (Path(amct_onnx.__file__).parent / "py.typed").exists()


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'(?m)^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert amct_onnx.__version__ == version


def test_type_checkers_see_the_same_names_as_users():
    text = Path(amct_onnx.__file__).read_text(encoding="utf-8")
    handed_on = re.findall(r"^ {4}from [\w.]+ import (\w+) as (\w+)$", text, re.MULTILINE)
    assert all(name == alias for name, alias in handed_on)
    assert sorted(name for name, _ in handed_on) == sorted([*NAMES, *TRAINING_NAMES, "AMCT_SO"])


@pytest.mark.parametrize("name", TRAINING_NAMES)
def test_the_names_for_training_can_be_had_and_are_explained(name):
    pytest.importorskip("torch")
    found = getattr(amct_onnx, name)
    assert found.__name__ == name
    assert found.__doc__


def test_without_torch_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None; import amct_onnx\n"
        "try: amct_onnx.to_torch\nexcept amct_onnx.NotAvailableError as error: print(error)"
    )
    assert python(code).endswith("which is not installed: pip install 'amct_onnx[retrain]'")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ArgumentError", TypeError),
        ("ConfigError", ValueError),
        ("ModelError", ValueError),
        ("DataError", ValueError),
        ("EvaluatorError", RuntimeError),
        ("RecordError", ValueError),
        ("OutputError", OSError),
        ("PassError", RuntimeError),
        ("NotAvailableError", NotImplementedError),
    ],
)
def test_every_error_is_ours_and_of_the_kind_that_python_has_for_it(name, kind):
    error = getattr(amct_onnx, name)
    assert issubclass(error, amct_onnx.AmctError)
    assert issubclass(error, kind)
    assert str(error("said so")) == "said so"


def test_the_package_logs_nothing_unless_somebody_listens():
    code = (
        "import logging, amct_onnx; log = logging.getLogger('amct_onnx'); log.warning('unheard');"
        "print(logging.getLogger().handlers, log.level, log.propagate, *map(type, log.handlers))"
    )
    assert python(code) == "[] 0 True <class 'logging.NullHandler'>"
