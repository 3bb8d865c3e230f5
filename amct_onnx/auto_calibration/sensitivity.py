"""How sensitive each layer is: by itself, as AMCT measures it, or at the outputs of the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from amct_onnx.auto_calibration.judge import calling
from amct_onnx.auto_calibration.protocol import SensitivityBase
from amct_onnx.data import Feed
from amct_onnx.errors import EvaluatorError
from amct_onnx.layer_pairs import layer_pairs
from amct_onnx.selection import Layers, Ranking, rank
from amct_onnx.trials import Mix, Trials


def by_single_layers(sensitivity: SensitivityBase, trials: Trials, feeds: Iterable[Feed]) -> Ranking:
    """Every layer compared by itself on its own input, the mean over the batches; the smallest value first.

    Raises:
        EvaluatorError: the comparison fails, or gives no number.
    """
    values: dict[str, list[float]] = {layer: [] for layer in trials.layers}
    for pairs in layer_pairs(trials.state(Mix()), trials.model(Mix()), feeds):
        for layer, (data, other) in pairs.items():
            with calling(sensitivity, "compare", f"layer {layer!r}"):
                value = float(sensitivity.compare(data, other))
            if math.isnan(value):
                raise EvaluatorError(f"compare() of {type(sensitivity).__name__} gave NaN for layer {layer!r}")
            values[layer].append(value)
    means = {layer: sum(found) / len(found) for layer, found in values.items()}
    return sorted(means.items(), key=lambda pair: pair[1])


def by_outputs(trials: Trials, tick: Callable[[], None]) -> Ranking:
    """Every layer by the noise that it brings to the outputs; the most harmful first.

    tick: called after each measurement.
    """

    def noise(layers: Layers) -> float:
        found = trials.noise(Mix(float_layers=layers))
        tick()
        return found

    return rank(trials.layers, noise)
