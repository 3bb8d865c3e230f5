"""Calls the user's evaluator, and says what it was called for where it fails."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amct_onnx.auto_calibration.log import TrialLog
from amct_onnx.auto_calibration.protocol import AutoCalibrationEvaluatorBase, Verdict
from amct_onnx.errors import AmctError, ConfigError, EvaluatorError
from amct_onnx.formats.model_file import write_model
from amct_onnx.passes.weights import LightModel
from amct_onnx.trials import Mix

_log = logging.getLogger("amct_onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One set of decisions, and what the evaluator says of it.

    metric: what `evaluate` gave.
    satisfied, loss: what `metric_eval` says of it.
    seconds: what the evaluation took; 0 where it was taken from the file of trials.
    """

    mix: Mix
    metric: Any
    satisfied: bool
    loss: Any
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """As a strategy takes it."""
        return self.satisfied, self.loss


class Judge:
    """Says of every mix whether it will do; of none twice.

    Attributes:
        trials: what was judged, in this order.
    """

    def __init__(
        self,
        evaluator: AutoCalibrationEvaluatorBase,
        original: Any,
        model: Callable[[Mix], LightModel],
        log: TrialLog,
        path: Path,
    ) -> None:
        """Prepare to judge.

        Args:
            evaluator: the user's.
            original: the metric of the float model.
            model: makes trial models.
            log: where trials are noted.
            path: what a trial model is called while it is evaluated.
        """
        self._evaluator, self._original, self._model, self._log = evaluator, original, model, log
        self._path = path
        self._known: dict[Mix, Trial] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What was judged, in this order."""
        return tuple(self._known.values())

    def trial(self, mix: Mix) -> Trial:
        """What the evaluator says of a mix.

        Raises:
            EvaluatorError: one of its methods fails, or `metric_eval` gives no verdict.
        """
        if mix not in self._known:
            metrics, seconds = self._log.metrics(mix), 0.0
            if not metrics:
                started = time.perf_counter()
                metrics = [self._evaluate(mix)]
                seconds = time.perf_counter() - started
                self._log.add(mix, metrics[0])
            satisfied, loss = verdict_of(self._evaluator, self._original, metrics[0])
            trial = Trial(mix=mix, metric=metrics[0], satisfied=satisfied, loss=loss, seconds=seconds)
            self._known[mix] = trial
            _log.info("trial %d: %s", len(self._known), describe(trial))
        return self._known[mix]

    def _evaluate(self, mix: Mix) -> Any:
        folder = self._path.parent
        folder.mkdir()
        try:
            write_model(self._model(mix), self._path)
            with calling(self._evaluator, "evaluate", f"a trial model with {_counted(mix)}"):
                return self._evaluator.evaluate(str(self._path))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def describe(trial: Trial) -> str:
    """A trial in one line."""
    word = "satisfied" if trial.satisfied else "not satisfied"
    took = f"{trial.seconds:.1f} s" if trial.seconds else "known before"
    return f"{_counted(trial.mix)}: {word}, metric {trial.metric}, loss {trial.loss} ({took})"


def _counted(mix: Mix) -> str:
    wide = f", {len(mix.int16_layers)} with 16-bit activations" if mix.int16_layers else ""
    return f"{len(mix.float_layers)} float layers{wide}"


def verdict_of(evaluator: AutoCalibrationEvaluatorBase, original: Any, metric: Any) -> Verdict:
    """What `metric_eval` says.

    Raises:
        EvaluatorError: it fails, or gives no verdict.
    """
    with calling(evaluator, "metric_eval", f"the metrics {original!r:.60} and {metric!r:.60}"):
        found = evaluator.metric_eval(original, metric)
    if not isinstance(found, (tuple, list)) or len(found) != 2 or np.size(found[0]) != 1:
        raise EvaluatorError(
            f"metric_eval() of {type(evaluator).__name__} must return two values, whether the metric will do and the "
            f"loss; found {found!r:.80}"
        )
    return bool(np.asarray(found[0]).item()), found[1]


@contextmanager
def calling(called: object, method: str, subject: str) -> Iterator[None]:
    """What the user's own code raises inside the block becomes an error that says what was being done.

    Raises:
        EvaluatorError: it failed, or is not there. Errors of this package are passed on as they are.
    """
    where = f"{method}() of {type(called).__name__}"
    try:
        yield
    except AmctError:
        raise
    except NotImplementedError as error:
        raise EvaluatorError(f"{where}, called for {subject}, is not implemented: {error}") from error
    except Exception as error:
        raise EvaluatorError(f"{where} failed for {subject}: {type(error).__name__}: {error}") from error


def original_metric(evaluator: AutoCalibrationEvaluatorBase, model_file: Path) -> Any:
    """The metric of the float model, which must satisfy beside itself.

    Raises:
        ConfigError: it does not.
        EvaluatorError: a method fails.
    """
    with calling(evaluator, "evaluate", f"the float model {model_file}"):
        metric = evaluator.evaluate(str(model_file))
    if not verdict_of(evaluator, metric, metric)[0]:
        raise ConfigError(
            f"metric_eval() of {type(evaluator).__name__} is not satisfied with the float model's own metric, "
            f"{metric!r:.80}; no quantized model can satisfy it either"
        )
    return metric
