"""Who decides what is tried next: a strategy in AMCT's protocol, or the engine's own greedy choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amct_onnx.auto_calibration.judge import Judge, calling
from amct_onnx.auto_calibration.protocol import AutoCalibrationStrategyBase
from amct_onnx.errors import EvaluatorError, nearest
from amct_onnx.selection import Ranking, choose
from amct_onnx.trials import Mix

_MOST_STEPS = 1000
"""Trials after which a strategy that does not stop is taken for one that never will."""


def follow(strategy: AutoCalibrationStrategyBase, judge: Judge, ranking: Ranking) -> Mix | None:
    """Try what a strategy says until it stops; None where it leaves all layers float.

    The last decision holds, whether it satisfies or not.

    Raises:
        EvaluatorError: the strategy fails, does not stop, or gives what is no decision.
    """
    name, layers = type(strategy).__name__, [layer for layer, _ in ranking]
    with calling(strategy, "initialize", f"the ranking of {len(layers)} layers"):
        strategy.initialize(dict(ranking))
    trial = judge.trial(Mix())
    for step in range(1, _MOST_STEPS + 1):
        with calling(strategy, "update_quant_config", f"step {step}"):
            found = strategy.update_quant_config(trial.verdict)
        stops, mix = _decision(found, layers, name)
        if len(mix.float_layers) == len(layers):
            return None
        trial = judge.trial(mix)
        if stops:
            return mix
    raise EvaluatorError(f"update_quant_config() of {name} has set no stop_flag in {_MOST_STEPS} steps")


def _decision(found: Any, layers: list[str], name: str) -> tuple[bool, Mix]:
    where = f"update_quant_config() of {name}"
    if not isinstance(found, Mapping) or not {"stop_flag", "roll_back_config"} <= found.keys():
        raise EvaluatorError(f"{where} must return a dict with stop_flag and roll_back_config, found {found!r:.80}")
    config = found["roll_back_config"]
    if not isinstance(config, Mapping):
        raise EvaluatorError(f"{where}: roll_back_config must map layers to True or False, found {config!r:.80}")
    for layer in config:
        if layer not in layers:
            raise EvaluatorError(
                f"{where}: roll_back_config names {layer!r}, no quantized layer{nearest(layer, layers)}"
            )
    return bool(found["stop_flag"]), Mix(float_layers=frozenset(layer for layer in config if not config[layer]))


def greedy(judge: Judge, ranking: Ranking) -> Mix | None:
    """As few float layers as the ranking and the metric allow; None where all would have to be float."""
    chosen = choose([layer for layer, _ in ranking], lambda layers: judge.is_enough(Mix(float_layers=layers)))
    return None if chosen is None else Mix(float_layers=chosen)
