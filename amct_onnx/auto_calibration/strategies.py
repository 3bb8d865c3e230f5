"""Who decides what is tried next: a strategy in AMCT's protocol, or the engine's own greedy choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amct_onnx.auto_calibration.judge import Judge, calling
from amct_onnx.auto_calibration.protocol import AutoCalibrationStrategyBase
from amct_onnx.errors import EvaluatorError, nearest
from amct_onnx.selection import Layers, Ranking, choose
from amct_onnx.trials import Mix, Trials

_MOST_STEPS = 1000
"""Trials after which a strategy that does not stop is taken for one that never will."""


def follow(strategy: AutoCalibrationStrategyBase, judge: Judge, ranking: Ranking, trials: Trials) -> Mix | None:
    """Try what a strategy says until it stops; None where it leaves all layers float.

    The last decision holds, whether it satisfies or not.

    Raises:
        EvaluatorError: the strategy fails, does not stop, or gives what is no decision.
    """
    name, layers = type(strategy).__name__, list(trials.layers)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The engine's own strategy: as few float layers as the ranking by outputs and the metric allow.

    int16: activations of 16 bits before float layers.
    """

    int16: bool = False

    def search(self, judge: Judge, ranking: Ranking, trials: Trials) -> Mix | None:
        """The choice; None where all layers would have to be float."""

        def is_enough(floats: Layers, wide: Layers) -> bool:
            return judge.trial(Mix(float_layers=floats, int16_layers=wide)).satisfied

        widenable = trials.int16_layers() if self.int16 else frozenset()
        found = choose([layer for layer, _ in ranking], is_enough, widenable)
        return None if found is None else Mix(float_layers=found[0], int16_layers=found[1])
