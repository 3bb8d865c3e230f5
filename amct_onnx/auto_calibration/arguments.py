"""Checks of who judges, who decides and who compares."""

from __future__ import annotations

from amct_onnx.auto_calibration.protocol import (
    STRATEGIES,
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    BinarySearchStrategy,
    CosineSimilaritySensitivity,
    SensitivityBase,
)
from amct_onnx.auto_calibration.strategies import Greedy
from amct_onnx.errors import ArgumentError, ConfigError
from amct_onnx.stepwise.arguments import require_type

SENSITIVITIES = ("CosineSimilarity",)


def check_evaluator(evaluator: object) -> None:
    """It must be an instance of a subclass of AMCT's base class.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(evaluator, type):
        raise ArgumentError(f"model_evaluator is the class {evaluator.__name__}; give an instance of it")
    name = AutoCalibrationEvaluatorBase.__name__
    require_type("model_evaluator", evaluator, AutoCalibrationEvaluatorBase, f"an instance of a subclass of {name}")


def strategy_of(strategy: object) -> AutoCalibrationStrategyBase | Greedy:
    """Who decides.

    Raises:
        ArgumentError: it is neither a name nor an instance of a subclass of AMCT's base class.
        ConfigError: there is no strategy of that name.
    """
    if isinstance(strategy, AutoCalibrationStrategyBase):
        return strategy
    _refuse_unknown("strategy", strategy, STRATEGIES, AutoCalibrationStrategyBase)
    return BinarySearchStrategy() if strategy == "BinarySearch" else Greedy(int16=strategy == "GreedyInt16")


def sensitivity_of(sensitivity: object, strategy: AutoCalibrationStrategyBase | Greedy) -> SensitivityBase | None:
    """What compares single layers; None where that is not asked for.

    Raises:
        ArgumentError: it is neither a name nor an instance of a subclass of AMCT's base class.
        ConfigError: there is no comparison of that name, or the strategy does not use it.
    """
    if not isinstance(sensitivity, SensitivityBase):
        _refuse_unknown("sensitivity", sensitivity, SENSITIVITIES, SensitivityBase)
        return None if isinstance(strategy, Greedy) else CosineSimilaritySensitivity()
    if isinstance(strategy, Greedy):
        raise ConfigError("a greedy strategy ranks layers by the outputs; leave sensitivity at 'CosineSimilarity'")
    return sensitivity


def _refuse_unknown(name: str, value: object, known: tuple[str, ...], base: type) -> None:
    if isinstance(value, type):
        raise ArgumentError(f"{name} is the class {value.__name__}; give an instance of it")
    listed = " or ".join(repr(word) for word in known)
    if not isinstance(value, str):
        raise ArgumentError(
            f"{name} must be {listed}, or an instance of a subclass of {base.__name__}; found "
            f"{type(value).__name__} {value!r:.60}"
        )
    if value not in known:
        raise ConfigError(f"{name} must be {listed}, or an instance of a subclass of {base.__name__}; found {value!r}")
