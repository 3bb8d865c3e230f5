"""An evaluator in a script, as the command line takes it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from amct_onnx.auto_calibration.protocol import AutoCalibrationEvaluatorBase
from amct_onnx.errors import AmctError, EvaluatorError

_INSTANCE = "customize_evaluator"


def load_evaluator(path: Path) -> Any:
    """The evaluator of a script: its `customize_evaluator`, as AMCT has it, or its one class that derives from AMCT's.

    Raises:
        EvaluatorError: the script cannot be run, or holds none or several evaluators.
    """
    module = _run(path)
    if hasattr(module, _INSTANCE):
        evaluator = getattr(module, _INSTANCE)
        if isinstance(evaluator, type) or not callable(getattr(evaluator, "calibration", None)):
            found = f"the class {evaluator.__name__}" if isinstance(evaluator, type) else repr(evaluator)
            raise EvaluatorError(f"{path}: {_INSTANCE} must be an object with a method calibration; found {found}")
        return evaluator
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, AutoCalibrationEvaluatorBase)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        found = f"{len(classes)}: {', '.join(kind.__name__ for kind in classes)}" if classes else "none"
        raise EvaluatorError(
            f"{path}: must hold one class that derives from AutoCalibrationEvaluatorBase, or an evaluator called "
            f"{_INSTANCE}; found {found}"
        )
    try:
        inspect.signature(classes[0]).bind()
    except TypeError as error:
        raise EvaluatorError(
            f"{path}: {classes[0].__name__} is made without arguments, but {error}; make one and call it {_INSTANCE}"
        ) from error
    try:
        return classes[0]()
    except Exception as error:
        raise EvaluatorError(f"{path}: {classes[0].__name__}() failed: {type(error).__name__}: {error}") from error


def judges(evaluator: object) -> bool:
    """Whether an evaluator says how good a model is, or only brings calibration data."""
    base = AutoCalibrationEvaluatorBase
    return all(
        callable(method) and getattr(method, "__func__", method) is not getattr(base, name)
        for name in ("evaluate", "metric_eval")
        for method in [getattr(evaluator, name, None)]
    )


def _run(path: Path) -> ModuleType:
    """The script as a module; its own folder is where it imports from first, as if it was run."""
    if not path.is_file():
        raise EvaluatorError(f"{path}: no such file; give the Python script that holds the evaluator")
    name = f"amct_onnx_evaluator_{path.stem}"
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise EvaluatorError(f"{path}: not a Python script; its name must end in .py")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        loader.loader.exec_module(module)
    except AmctError:
        raise
    except SystemExit as error:
        raise EvaluatorError(
            f"{path}: the script ends itself (exit status {error.code}) when it is read; put what it runs behind "
            "if __name__ == '__main__'"
        ) from error
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_of(error, path)
        raise EvaluatorError(f"{path}, line {line}: the script fails: {type(error).__name__}: {error}") from error
    return module


def _line_of(error: Exception, path: Path) -> int | None:
    frame, line = error.__traceback__, None
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
