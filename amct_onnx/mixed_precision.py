"""Which layers stay float, or get 16-bit activations, so that a model reaches an accuracy target.

The layers that matter are found by what each does by itself, then ranked by the noise that they bring to the outputs
(`selection.rank`); as few as will do are kept (`selection.choose`), every choice being written as a trial model and
measured again.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from amct_onnx.accuracy_target import AccuracyTarget, TargetSearch, TargetStep
from amct_onnx.calibrated import Calibrated
from amct_onnx.data import Feed
from amct_onnx.errors import AmctError, ConfigError, EvaluatorError
from amct_onnx.formats.model_file import write_model
from amct_onnx.held_back import Divided
from amct_onnx.layer_pairs import layer_pairs
from amct_onnx.passes.graph import Array
from amct_onnx.passes.session import open_session
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.progress import Progress
from amct_onnx.report.compare import RunningError
from amct_onnx.report.page import counted
from amct_onnx.selection import Layers, choose, rank
from amct_onnx.trials import Mix, Trials, measured_outputs

_log = logging.getLogger("amct_onnx")

_RANKED_BATCHES = 4
"""Batches of the calibration data that layers are ranked on by the noise that they bring to the outputs."""

_COMPARED_BATCHES = 2
"""Batches of the calibration data that layers are compared on by themselves."""


def reach(
    found: Calibrated, target: AccuracyTarget, held: Divided | None, show: Progress
) -> tuple[QuantState, TargetSearch]:
    """Keep as few layers float, or widen as few, as the target needs.

    Args:
        found: the calibrated model.
        target: what is to be reached.
        held: the data to measure on; None where a metric of the user's own brings its own.
        show: shows what is being done.

    Returns:
        The state to write, whose plan says why each of these layers is as it is; and all that was measured.

    Raises:
        ConfigError: the target is reached by no model with a quantized layer, or the float model gives NaN.
        EvaluatorError: the user's metric fails.
    """
    trials = Trials(found, batches=_RANKED_BATCHES)
    gauge = _Metric(found, target) if held is None or target.metric is not None else _Outputs(found, target, held.held)
    judge = _Judge(trials, target, gauge)
    mix = Mix()
    if not judge.step(mix).reached:
        ranking = _ranked(found, trials, judge, show)
        wide = trials.int16_layers() if target.int16 else frozenset()
        chosen = choose(ranking, judge.is_enough, wide)
        if chosen is None:
            raise ConfigError(judge.why_not())
        mix = Mix(float_layers=chosen[0], int16_layers=chosen[1])
    state = _explained(trials.state(mix), mix, judge)
    on = "the data of the metric" if held is None or target.metric is not None else held.says
    return state, TargetSearch(target=judge.described, measured_on=on, steps=judge.steps, chosen=judge.step(mix))


def _ranked(found: Calibrated, trials: Trials, judge: _Judge, show: Progress) -> list[str]:
    """The layers to choose from, the most harmful first.

    What a layer does by itself, with float inputs, is cheap to measure and tells roughly where to look: so many of the
    worst as suffice when they are float are ranked by what they do to the outputs, the others follow as they are.
    """
    order = _by_themselves(found, trials)
    suspects = 1
    while suspects < len(order) and not judge.is_enough(frozenset(order[:suspects]), frozenset()):
        suspects *= 2
    ticks = show.track(count(), "rank layers", None, "measurements")
    next(ticks)

    def noise(layers: Layers) -> float:
        value = trials.noise(Mix(float_layers=layers))
        next(ticks)
        return value

    try:
        ranking = rank(order[:suspects], noise) if suspects > 1 else [(order[0], 0.0)]
    finally:
        ticks.close()  # type: ignore[attr-defined]
    rest = order[suspects:] if judge.takes_int16 else order[suspects : suspects + 1]
    return [*(name for name, _ in ranking), *rest]  # one more than suffice: what all of them do is not asked


def _by_themselves(found: Calibrated, trials: Trials) -> list[str]:
    """The layers in the order of the noise that each makes alone of the input it has in calibration."""
    sums = {name: RunningError() for name in trials.layers}
    feeds = islice(found.feeds, _COMPARED_BATCHES)
    for pairs in layer_pairs(trials.state(Mix()), trials.model(Mix()), feeds):
        for name, (expected, given) in pairs.items():
            sums[name].add(expected, given)
    return sorted(sums, key=lambda name: _noise(sums[name]), reverse=True)


def _noise(error: RunningError) -> float:
    """Noise / signal; infinite where it is no number."""
    ratio = error.noise / error.xx if error.xx else error.noise
    return ratio if math.isfinite(ratio) else math.inf


class _Judge:
    """Measures mixes, none of them twice."""

    def __init__(self, trials: Trials, target: AccuracyTarget, gauge: _Outputs | _Metric) -> None:
        self._trials, self._target, self._gauge = trials, target, gauge
        self._known: dict[Mix, TargetStep] = {}
        self.described, self.takes_int16 = target.describe(gauge.original), target.int16

    @property
    def steps(self) -> tuple[TargetStep, ...]:
        """What was measured, in this order."""
        return tuple(self._known.values())

    def step(self, mix: Mix) -> TargetStep:
        """What a mix gives."""
        if mix not in self._known:
            value = self._gauge.measure(self._trials.model(mix))
            step = TargetStep(
                float_layers=tuple(name for name in self._trials.layers if name in mix.float_layers),
                int16_layers=tuple(name for name in self._trials.layers if name in mix.int16_layers),
                value=value,
                shown=self._target.shown(value),
                reached=value >= self._target.limit(self._gauge.original),
            )
            self._known[mix] = step
            floats, wide = len(step.float_layers), len(step.int16_layers)
            word = "reached" if step.reached else "not reached"
            line = "target, step %3d: %4d float, %4d with 16-bit activations: %s, %s"
            _log.info(line, len(self._known), floats, wide, step.shown, word)
        return self._known[mix]

    def is_enough(self, floats: Layers, wide: Layers) -> bool:
        """Whether it will do to leave some layers float and to widen others."""
        return self.step(Mix(float_layers=floats, int16_layers=wide)).reached

    def why_not(self) -> str:
        """Why there is no model that reaches the target."""
        best = max(self.steps, key=lambda step: -math.inf if math.isnan(step.value) else step.value)
        tensors = len(list(self._trials.state(Mix()).tensors()))
        said = f"the target, {self.described}, is reached only with every layer float"
        said += f", if at all beside {counted(tensors, 'single tensor')} to quantize" if tensors else ""
        said += f": all quantized give {self.steps[0].shown}"
        if best is not self.steps[0]:
            wide = f" and {len(best.int16_layers)} with 16-bit activations" if best.int16_layers else ""
            said += f", {len(best.float_layers)} of {len(self._trials.layers)} float{wide} give {best.shown}"
        return f"{said}; lower the target"


def _explained(state: QuantState, mix: Mix, judge: _Judge) -> QuantState:
    """The state whose plan says, with figures, why layers are float or wide."""
    plan = state.plan
    skipped, notes = dict(plan.skipped), dict(plan.notes)
    now = judge.step(mix)
    for name in now.float_layers:
        without = judge.step(replace(mix, float_layers=mix.float_layers - {name})).shown
        skipped[name] = (
            f"kept float: the target, {judge.described}, needs it: {now.shown} so, {without} with this layer quantized"
        )
    for name in now.int16_layers:
        without = judge.step(replace(mix, int16_layers=mix.int16_layers - {name})).shown
        said = f"16-bit activations: the target, {judge.described}, needs them: {now.shown} so, {without} with 8 bits"
        notes[name] = (*notes.get(name, ()), said)
    return replace(state, plan=replace(plan, skipped=skipped, notes=notes))


class _Outputs:
    """The worst output's SQNR or cosine."""

    original = math.inf

    def __init__(self, found: Calibrated, target: AccuracyTarget, feeds: Iterable[Feed]) -> None:
        session = open_session(found.state.graph.to_light(), "the float model")
        self._expected: list[tuple[Feed, Mapping[str, Array]]] = [
            (feed, session.run(feed, f"batch {index}")) for index, feed in enumerate(feeds)
        ]
        _require_numbers(self._expected)
        self._use_sqnr = target.sqnr is not None

    def measure(self, model: LightModel) -> float:
        """Of a trial model; -inf where an output is not finite."""
        session = open_session(model, "a trial model")
        sums = {name: RunningError() for name in measured_outputs(self._expected[0][1])}
        for index, (feed, expected) in enumerate(self._expected):
            given = session.run(feed, f"batch {index}")
            for name, error in sums.items():
                error.add(expected[name], given[name])
        errors = [error.error() for error in sums.values()]
        values = [error.sqnr if self._use_sqnr else error.cosine for error in errors]
        return min(-math.inf if math.isnan(value) else value for value in values)


def _require_numbers(expected: Iterable[tuple[Feed, Mapping[str, Array]]]) -> None:
    for _, outputs in expected:
        for name in measured_outputs(outputs):
            if outputs[name].dtype.kind == "f" and np.isnan(outputs[name]).any():
                raise ConfigError(
                    f"output {name!r} of the float model holds NaN on the calibration data, so that neither SQNR nor "
                    "cosine of it can be measured; give the target a metric"
                )


class _Metric:
    """The user's own metric, which is called with files."""

    def __init__(self, found: Calibrated, target: AccuracyTarget) -> None:
        assert target.metric is not None
        self._metric = target.metric
        self.original = self.measure(found.state.graph.to_light(), "the float model")
        if not math.isfinite(self.original):
            raise EvaluatorError(f"the metric of the target gave {self.original} for the float model")

    def measure(self, model: LightModel, what: str = "a trial model") -> float:
        """What the metric gives.

        Raises:
            EvaluatorError: it fails, or gives no number.
        """
        with tempfile.TemporaryDirectory(prefix="amct_onnx-") as folder:
            path = Path(folder) / "model.onnx"
            write_model(model, path)
            try:
                found = self._metric(str(path))
            except AmctError:
                raise
            except Exception as error:
                said = f"the metric of the target failed for {what}: {type(error).__name__}: {error}"
                raise EvaluatorError(said) from error
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            raise EvaluatorError(f"the metric of the target must give a number, found {found!r:.80}") from error
