"""accuracy_based_auto_calibration: AMCT's call, over trial models of a network that is calibrated once."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from amct_onnx.auto_calibration.arguments import check_evaluator, sensitivity_of, strategy_of
from amct_onnx.auto_calibration.capture import captured
from amct_onnx.auto_calibration.judge import Judge, Trial, original_metric
from amct_onnx.auto_calibration.log import TrialLog, fingerprint
from amct_onnx.auto_calibration.outputs import TRIALS, Files, files_of, working_folder, write
from amct_onnx.auto_calibration.protocol import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    SensitivityBase,
)
from amct_onnx.auto_calibration.sensitivity import by_outputs, by_single_layers
from amct_onnx.auto_calibration.strategies import Greedy, follow
from amct_onnx.calibrated import calibrated
from amct_onnx.config import QuantConfig
from amct_onnx.formats.config_source import load_config
from amct_onnx.passes.weights import LightModel
from amct_onnx.prepare import warn_of_floats
from amct_onnx.progress import Progress
from amct_onnx.selection import Ranking
from amct_onnx.stepwise.arguments import path_of, read_source
from amct_onnx.trials import Mix, Trials

_log = logging.getLogger("amct_onnx")


_RANKED_BATCHES = 4
"""Batches of the calibration data that layers are ranked on by the noise that they bring to the outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoCalibrationResult:
    """What `accuracy_based_auto_calibration` found.

    trial: the decisions that were written, and their metric; None where all layers would have to stay float, so that
        there is no model.
    original: the metric of the float model.
    trials: all that was tried, in this order.
    ranking: layer -> how sensitive it is, the most sensitive first; empty where nothing had to be ranked.
    files: what was written.
    """

    trial: Trial | None
    original: Any
    trials: tuple[Trial, ...]
    ranking: Ranking
    files: tuple[Path, ...]


def accuracy_based_auto_calibration(
    model_file: str | os.PathLike[str],
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str | os.PathLike[str],
    record_file: str | os.PathLike[str],
    save_dir: str | os.PathLike[str],
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
) -> AutoCalibrationResult:
    """Quantize a model, and leave as many layers float as the evaluator's metric needs.

    The model is calibrated once. Beside the models it writes AMCT's
    `accuracy_based_auto_calibration_ranking_information.json` and `..._final_config.json`, and `..._trials.json`: a
    call that was interrupted goes on from there when it is repeated. Where all layers would have to stay float, there
    is no model: an earlier one under these names is removed, nothing else.

    Args:
        model_file: the float model.
        model_evaluator: calibrates and judges, see `AutoCalibrationEvaluatorBase`.
        config_file: what to quantize and how, from `create_quant_config`; it is not changed.
        record_file: the file for the factors; an existing one is replaced.
        save_dir: directory and prefix of <save_dir>_deploy_model.onnx, _fake_quant_model.onnx and _quant.json, which
            replace existing ones.
        strategy: "BinarySearch", as AMCT does it; "Greedy", which ranks layers by the noise that they bring to the
            outputs, and needs fewer float ones; "GreedyInt16", which gives activations 16 bits before it leaves layers
            float, for chips that take these; or a strategy of the user's own.
        sensitivity: "CosineSimilarity", which compares every layer by itself; or a comparison of the user's own.
            The greedy ones do not use it.

    Raises:
        ArgumentError: an argument has the wrong type.
        EvaluatorError: the evaluator, strategy or sensitivity failed; says in which method and for what.
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed.
    """
    check_evaluator(model_evaluator)
    chosen = strategy_of(strategy)
    compared = sensitivity_of(sensitivity, chosen)
    name = sensitivity if isinstance(sensitivity, str) else None
    files = files_of(model_file, path_of("config_file", config_file), record_file, save_dir)
    source = read_source(model_file)
    return auto_calibrate(source, model_evaluator, load_config(config_file), files, chosen, compared, name)


def auto_calibrate(
    source: LightModel,
    evaluator: AutoCalibrationEvaluatorBase,
    config: QuantConfig,
    files: Files,
    strategy: AutoCalibrationStrategyBase | Greedy,
    sensitivity: SensitivityBase | None,
    sensitivity_name: str | None = None,
) -> AutoCalibrationResult:
    """The same with everything read.

    Args:
        source: the float model, which also stands at `files.model`.
        evaluator: the user's.
        config: what to quantize and how.
        files: where everything goes.
        strategy: who decides.
        sensitivity: what compares single layers; None ranks layers by the outputs where something is to be ranked.
        sensitivity_name: under which its ranking is kept for a repeated call; None where it may have changed.
    """
    show = Progress()
    original = original_metric(evaluator, files.model)
    with working_folder(files.target.directory) as folder:
        path = folder / files.target.path("modified_model.onnx").name
        batches = captured(evaluator, source, config.batch_num or 1, path)
        found = calibrated(source, config, batches, show=show)
        warn_of_floats(found.state)
        trials = Trials(found, batches=_RANKED_BATCHES)
        log = TrialLog(files.beside(TRIALS), fingerprint(source, found.text(), found.feeds), original)
        path = folder / "trial" / files.target.path("fake_quant_model.onnx").name
        judge = Judge(evaluator, original, trials.model, log, path)
        first, ranking = judge.trial(Mix()), Ranking()
        if sensitivity is not None:
            ranking = log.ranking(sensitivity_name, lambda: by_single_layers(sensitivity, trials, found.feeds))
        elif not first.satisfied:
            ranking = log.ranking("outputs", lambda: _ranked(trials, show))
        mix: Mix | None = Mix()
        if not first.satisfied:
            search = strategy.search if isinstance(strategy, Greedy) else partial(follow, strategy)
            mix = search(judge, ranking, trials)
        trial = None if mix is None else judge.trial(mix)
        written = write(files, found, trials, trial, ranking)
    return AutoCalibrationResult(trial=trial, original=original, trials=judge.trials, ranking=ranking, files=written)


def _ranked(trials: Trials, show: Progress) -> Ranking:
    ticks = show.track(count(), "rank layers", None, "measurements")
    next(ticks)
    try:
        return by_outputs(trials, lambda: (next(ticks), None)[1])
    finally:
        ticks.close()  # type: ignore[attr-defined]
