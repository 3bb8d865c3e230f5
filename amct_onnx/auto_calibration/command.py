"""What the command line does with an evaluator."""

from __future__ import annotations

import logging
import os

from amct_onnx.auto_calibration.arguments import sensitivity_of, strategy_of
from amct_onnx.auto_calibration.capture import captured
from amct_onnx.auto_calibration.outputs import files_of, working_folder
from amct_onnx.auto_calibration.run import AutoCalibrationResult, auto_calibrate
from amct_onnx.auto_calibration.script import judges, load_evaluator
from amct_onnx.config import with_options
from amct_onnx.errors import ConfigError
from amct_onnx.formats.config_source import load_config
from amct_onnx.quantize import quantize_onnx
from amct_onnx.results import FILES, QuantizeResult, Target
from amct_onnx.stepwise.arguments import path_of, read_source

_log = logging.getLogger("amct_onnx")


def run_evaluator(
    model: str, script: str, save_path: str, *, config: str | None, batch_num: int, strategy: str | None
) -> QuantizeResult | AutoCalibrationResult:
    """Quantize a model with the evaluator of a script.

    One that has `evaluate` and `metric_eval` decides which layers stay float; one that has `calibration` only brings
    the data.

    Args:
        model: path of the float model.
        script: path of the script.
        save_path: directory and prefix of the files.
        config: path of a configuration; None for the engine's own preset with `batch_num`.
        batch_num: batches to calibrate with where there is no configuration.
        strategy: as in `accuracy_based_auto_calibration`; None for "Greedy".

    Raises:
        EvaluatorError: the script or the evaluator fails.
        ConfigError: a strategy is chosen for an evaluator that does not judge. And others as `quantize_onnx`.
    """
    given = load_config(config) if config is not None else with_options(load_config(None), {"batch_num": batch_num})
    path, source = path_of("--evaluator", script), read_source(model)
    target = Target.of(save_path, {"model": model, "evaluator": script}, FILES)
    files = files_of(model, config, target.path("record.txt"), save_path)
    save_path = os.path.join(os.getcwd(), save_path)  # the script may change the directory
    evaluator = load_evaluator(path)
    if judges(evaluator):
        chosen = strategy_of(strategy or "Greedy")
        compared = sensitivity_of("CosineSimilarity", chosen)
        return auto_calibrate(source, evaluator, given, files, chosen, compared, "CosineSimilarity")
    if strategy is not None:
        raise ConfigError(
            f"--strategy: the evaluator of {script} has no evaluate and metric_eval, so it judges nothing"
        )
    _log.info("the evaluator of %s brings calibration data and judges nothing", script)
    with working_folder(files.target.directory) as folder:
        batches = captured(evaluator, source, given.batch_num or 1, folder / target.path("modified_model.onnx").name)
        return quantize_onnx(files.model, given, calibration=batches, save_path=save_path)
