"""What the terminal shows of a search: every trial, and which layers stay float."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from amct_onnx.auto_calibration.judge import Trial
from amct_onnx.auto_calibration.run import AutoCalibrationResult


def trial_table(found: AutoCalibrationResult) -> Table:
    """A row for every trial, the one that was written marked; the float layers of that one below."""
    table = Table(title=f"float model: {found.original}", title_justify="left", caption=Text(_outcome(found.trial)))
    for column in ("trial", "float layers", "16-bit activations", "metric", "loss", "satisfied", "seconds"):
        table.add_column(column, overflow="fold")
    for number, trial in enumerate(found.trials, 1):
        table.add_row(
            f"{number}{' <' if trial is found.trial else ''}",
            str(len(trial.mix.float_layers)),
            str(len(trial.mix.int16_layers)),
            Text(str(trial.metric)),
            Text(str(trial.loss)),
            "yes" if trial.satisfied else "no",
            f"{trial.seconds:.1f}" if trial.seconds else "",
        )
    return table


def _outcome(trial: Trial | None) -> str:
    if trial is None:
        return "no model: all layers would stay float"
    kept = f"float: {', '.join(sorted(trial.mix.float_layers)) or 'none'}"
    wide = ", ".join(sorted(trial.mix.int16_layers))
    return f"{kept}; 16-bit activations: {wide}" if wide else kept
