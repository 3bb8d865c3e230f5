"""Where the results go, and how they get there."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from amct_onnx.auto_calibration.judge import Trial
from amct_onnx.calibrated import Calibrated
from amct_onnx.errors import OutputError
from amct_onnx.formats.model_file import write_files
from amct_onnx.formats.record import format_record
from amct_onnx.passes.weights import LightModel
from amct_onnx.results import Target, layer_records
from amct_onnx.selection import Ranking
from amct_onnx.stepwise.arguments import path_of, require_apart
from amct_onnx.stepwise.save import SAVED_FILES, target_of, write_saved
from amct_onnx.trials import Trials

_log = logging.getLogger("amct_onnx")

_STEM = "accuracy_based_auto_calibration_"
RANKING, FINAL_CONFIG, TRIALS = (f"{_STEM}{what}.json" for what in ("ranking_information", "final_config", "trials"))
"""Files beside the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What is read, and where the results go."""

    model: Path
    record: Path
    target: Target

    def beside(self, name: str) -> Path:
        """Of a file in the directory of the models."""
        return self.target.directory / name


@contextmanager
def working_folder(directory: Path) -> Iterator[Path]:
    """A folder in the directory of the results, for as long as it is needed.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".amct_onnx-", dir=directory)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be written to: {error.strerror or error}") from error
    with temporary as folder:
        yield Path(folder)


def files_of(model_file: object, config_file: object, record_file: object, save_dir: object) -> Files:
    """The files that a call names; `config_file` may be None.

    Raises:
        ArgumentError, ConfigError: an argument is no path.
        OutputError: a file that is read would be written.
    """
    read = {"model_file": path_of("model_file", model_file)}
    if config_file is not None:
        read["config_file"] = path_of("config_file", config_file)
    record = path_of("record_file", record_file)
    target = target_of(save_dir, read)
    files = Files(model=read["model_file"], record=record, target=target)
    written = {ending: target.path(ending) for ending in SAVED_FILES}
    written |= {name: files.beside(name) for name in (RANKING, FINAL_CONFIG, TRIALS)}
    require_apart({**written, "record_file": record}, read)
    return files


def write(files: Files, found: Calibrated, trials: Trials, trial: Trial | None, ranking: Ranking) -> tuple[Path, ...]:
    """Write the decisions of a trial, of which there is none where all layers would be float; gives what was written.

    Raises:
        ModelError, PassError, OutputError: as the last steps of `quantize_onnx`.
    """
    texts: dict[Path, LightModel | str] = {}
    if ranking:
        texts[files.beside(RANKING)] = json.dumps(ranking, indent=4, separators=(",", ":"), ensure_ascii=False)
    models = [files.target.path(ending) for ending in SAVED_FILES]
    if trial is None:
        _log.warning("no model: the metric is not satisfied before all layers are float")
        for path in models:
            with suppress(FileNotFoundError):
                path.unlink()
        write_files(texts)
        return tuple(texts)
    if not trial.satisfied:
        _log.warning("the strategy has stopped at a model whose metric is not satisfied")
    state = trials.state(trial.mix)
    write_saved(state, files.target, found.expected, found.feeds.first)
    texts[files.beside(FINAL_CONFIG)] = found.text(state.plan)
    texts[files.record] = format_record(layer_records(state))
    write_files(texts)
    return (*models, *texts)
