"""Imports run one way: product files -> passes -> kernels -> errors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "amct_onnx"

# From the ground up. A module may import from its own floor and those below it.
FLOORS = [
    ["errors"],
    ["kernels"],
    ["passes"],
    ["accuracy_target", "cli_help", "completion", "data", "progress", "retrain_config", "strategy_config"],
    ["cli_data", "config"],
    ["formats"],
    ["planning_tensors"],
    ["deploy", "planning", "report", "strategy_planning"],
    ["given", "held_back", "prepare", "results"],
    ["calibrated", "forecast"],
    ["by_strategy", "layer_pairs", "selection", "trials"],
    ["effort", "mixed_precision"],
    ["caffe", "convert", "quantize"],
    ["retrain", "stepwise"],
    ["auto_calibration"],
    ["common"],
    ["cli_commands"],
    ["cli"],
    ["__init__", "__main__"],
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Rooms that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amct_onnx."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("amct_onnx."))


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_upward(path):
    own = FLOOR_OF[room_of(path)]
    for room in imports_of(path):
        assert FLOOR_OF[room] <= own, f"{path.name} imports amct_onnx.{room}, which is a floor above it"


def test_only_one_module_touches_graphsurgeon():
    users = [p.name for p in MODULES if "onnx_graphsurgeon" in p.read_text(encoding="utf-8")]
    assert users == ["graph.py"]


def test_the_top_level_links_lead_into_the_package():
    root = PACKAGE.parent
    for room in ("passes", "kernels"):
        assert (root / room).resolve() == PACKAGE / room
