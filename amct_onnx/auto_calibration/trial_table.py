"""What the terminal shows of a search: every trial, and which layers stay float."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from amct_onnx.auto_calibration.run import AutoCalibrationResult


def trial_table(found: AutoCalibrationResult) -> Table:
    """A row for every trial, the one that was written marked; the float layers of that one below."""
    kept = sorted(found.trial.mix.float_layers) if found.trial is not None else []
    outcome = "no model: all layers would stay float" if found.trial is None else f"float: {', '.join(kept) or 'none'}"
    table = Table(title=f"float model: {found.original}", title_justify="left", caption=Text(outcome))
    for column in ("trial", "float layers", "metric", "loss", "satisfied", "seconds"):
        table.add_column(column, overflow="fold")
    for number, trial in enumerate(found.trials, 1):
        table.add_row(
            f"{number}{' <' if trial is found.trial else ''}",
            str(len(trial.mix.float_layers)),
            Text(str(trial.metric)),
            Text(str(trial.loss)),
            "yes" if trial.satisfied else "no",
            f"{trial.seconds:.1f}" if trial.seconds else "",
        )
    return table
