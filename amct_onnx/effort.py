"""The engine's own preset: how a model is quantized when nobody says how.

`fast` corrects biases, which costs hardly anything and helps nearly everywhere. The others try what helps some networks
and harms others, each by its loss at the outputs of the network on batches that calibration does not see.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from amct_onnx.calibrated import Calibrated
from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.data import CalibrationSource, Feed
from amct_onnx.forecast import forecast
from amct_onnx.held_back import Divided
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.passes.graph import Array
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FAKE_QUANT
from amct_onnx.passes.session import open_session
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import RunningError

_log = logging.getLogger("amct_onnx")

Calibrate = Callable[[QuantConfig, CalibrationSource | None], Calibrated]

_LEAST_GAIN = 0.1
"""Decibels that a change must be worth, in the mean of the batches that it is measured on."""

_EXACT = 1e-5
"""Noise over signal that counts as none: 50 dB, the best that 8 bits give. Outputs beyond it are those of a Softmax or
Sigmoid near 0 and 1, whose dB say nothing of the layers before it and would outweigh those of all other batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """Something to try.

    name: as the plan tells of it.
    fields: of the configuration that it sets; a user who sets one of them himself has decided.
    op_types: it is for networks that have such layers; empty for all.
    apply: the configuration with it.
    """

    name: str
    fields: tuple[str, ...]
    op_types: tuple[str, ...]
    apply: Callable[[QuantConfig], QuantConfig]

    def is_for(self, op_types: frozenset[str], given: frozenset[str]) -> bool:
        """Whether it is tried. op_types: of the layers; given: fields that the user set."""
        return not given & set(self.fields) and (not self.op_types or not op_types.isdisjoint(self.op_types))


def _with_blocks(config: QuantConfig, change: Callable[[LayerConfig], LayerConfig]) -> QuantConfig:
    types = {name: change(block) for name, block in config.override_layer_types.items()}
    return replace(config, common_config=change(config.common_config), override_layer_types=types)


def _with_dmq(config: QuantConfig) -> QuantConfig:
    block = replace(config.common_config, balancer=Dmq())
    return replace(config, fold_balancers=True, override_layer_types={"MatMul": block, "Gemm": block})


_BLOCKS = ("common_config", "override_layer_types", "override_layer_configs")

_BALANCED = (
    _Change(
        name="equalisation of layers",
        fields=("equalise_layers",),
        op_types=("Conv", "ConvTranspose"),
        apply=lambda config: replace(config, equalise_layers=True),
    ),
    _Change(
        name="DMQ of MatMul and Gemm",
        fields=(*_BLOCKS, "fold_balancers", "balance_batches"),
        op_types=("MatMul", "Gemm"),
        apply=_with_dmq,
    ),
    _Change(
        name="ranges around the percentile 99.99",
        fields=_BLOCKS,
        op_types=(),
        apply=lambda config: _with_blocks(
            config, lambda block: replace(block, activation=Ifmr(max_percentile=0.9999, min_percentile=0.9999))
        ),
    ),
    _Change(
        name="ranges by HFMG",
        fields=_BLOCKS,
        op_types=(),
        apply=lambda config: _with_blocks(config, lambda block: replace(block, activation=Hfmg())),
    ),
)

_BEST = (
    *_BALANCED,
    _Change(
        name="rounding learned by AdaRound",
        fields=_BLOCKS,
        op_types=(),
        apply=lambda config: _with_blocks(
            config, lambda block: replace(block, weight=AdaRound(num_iteration=100, amct_scales=False))
        ),
    ),
)

_CHANGES = {"balanced": _BALANCED, "best": _BEST}

_LEARNING = "; AdaRound in one of them takes longer, and says while it learns how long"


def own_preset(config: QuantConfig, given: frozenset[str]) -> QuantConfig:
    """What is done whatever the effort. given: fields that the user set."""
    return config if "correct_biases" in given else replace(config, correct_biases=True)


def best_settings(
    source: LightModel, calibrate: Calibrate, config: QuantConfig, data: Divided, effort: str, given: frozenset[str]
) -> Calibrated:
    """Calibrate a model with the settings that are best for it, as far as the effort goes.

    Args:
        source: the model.
        calibrate: calibrates it as a configuration says, with data.
        config: as of `own_preset`.
        data: what is calibrated with, and measured on.
        effort: "balanced" or "best".
        given: fields that the user set; nothing else is tried for them.

    Raises:
        DataError: the data do not fit.
    """
    outlook = forecast(source, config, data.rest())
    changes = [change for change in _CHANGES[effort] if change.is_for(outlook.op_types, given)]
    count = 1 + len(changes) + data.withholds
    _log.info("effort %s: %s%s", effort, outlook.describe(count), _LEARNING if effort == "best" else "")
    best = calibrate(config, data.rest)
    trials = _Trials(best.state, data.held)
    losses = trials.losses(best.state)
    said: list[str] = []
    if "correct_biases" not in given and best.state.bias_shifts:
        plain = replace(best, config=replace(config, correct_biases=False), state=replace(best.state, bias_shifts={}))
        best, losses = trials.better("no bias correction", (best, losses), plain, said)
    for number, change in enumerate(changes, 1):
        _log.info("calibration %d of %d: %s", 1 + number, count, change.name)
        other = calibrate(change.apply(best.config), data.rest)
        best, losses = trials.better(change.name, (best, losses), other, said)
    choices = (f"measured on {data.says}", *said)
    return replace(best, state=replace(best.state, plan=replace(best.state.plan, choices=choices)))


def with_all_batches(found: Calibrated, calibrate: Calibrate, data: Divided) -> Calibrated:
    """The settings of `best_settings`, calibrated with what was held back too: no worse than `fast` for few data.

    Not where rounding is learned: that takes long, and is worth more than some batches.
    """
    if not data.withholds or isinstance(found.config.common_config.weight, AdaRound):
        return found
    _log.info("the last calibration: with all batches")
    choices = (*found.state.plan.choices, "calibrated again with all batches")
    again = calibrate(found.config, data.all)
    return replace(again, state=replace(again.state, plan=replace(again.state.plan, choices=choices)))


class _Trials:
    """Measures quantized models at their outputs."""

    def __init__(self, state: QuantState, feeds: Sequence[Feed]) -> None:
        session = open_session(state.graph.to_light(), "the float model")
        self._expected = [session.run(feed, f"batch {index}") for index, feed in enumerate(feeds)]
        self._feeds = feeds

    def better(
        self, name: str, best: tuple[Calibrated, list[float]], other: Calibrated, said: list[str]
    ) -> tuple[Calibrated, list[float]]:
        """The other one where it is better by enough, else the best so far; says so."""
        losses = self.losses(other.state)
        taken = _gains_enough(best[1], losses)
        verdict = "taken" if taken else "not taken"
        said.append(f"{name}: {verdict}, {-fmean(losses):.1f} dB instead of {-fmean(best[1]):.1f} dB")
        _log.info("%s", said[-1])
        return (other, losses) if taken else best

    def losses(self, state: QuantState) -> list[float]:
        """Noise over signal of every batch in dB; inf where undefined."""
        copy = replace(state, graph=state.graph.copy())
        run_passes(FAKE_QUANT, copy)
        session = open_session(copy.graph.to_light(), "a trial model")
        return [
            _loss(expected, session.run(feed, f"batch {index}"))
            for index, (feed, expected) in enumerate(zip(self._feeds, self._expected, strict=True))
        ]


def _gains_enough(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether losses fall by enough, in the mean of all batches, so that none outweighs the others.

    That is by more than `_LEAST_GAIN`, and by more than the standard error of the mean: where some batches gain and
    others lose as much, others that nobody has seen may as well lose.
    """
    if not math.isfinite(fmean(before)):
        return math.isfinite(fmean(after))
    gains = [old - new for old, new in zip(before, after, strict=True)]
    gain = fmean(gains)
    if not gain > _LEAST_GAIN:
        return False
    return len(gains) == 1 or gain > stdev(gains) / math.sqrt(len(gains))


def _loss(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Of one batch: the mean of its outputs of floats; where there are none, of all."""
    losses = []
    for name in [name for name, values in expected.items() if values.dtype.kind == "f"] or list(expected):
        error = RunningError()
        error.add(expected[name], found[name])
        if not math.isfinite(error.noise):
            return math.inf
        ratio = error.noise / error.xx if error.xx else float(error.noise > 0)
        losses.append(10 * math.log10(max(ratio, _EXACT)))
    return fmean(losses)
