"""The calibration data of an evaluator: what it feeds to a model that keeps what it is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from amct_onnx.auto_calibration.judge import calling
from amct_onnx.data import Feed, input_specs
from amct_onnx.formats.model_file import write_model
from amct_onnx.passes.weights import LightModel
from amct_onnx.prepare import runnable
from amct_onnx.stepwise.keeping import kept_batches, with_keepers


class Calibrator(Protocol):
    """Whoever runs data through a model."""

    def calibration(self, model_file: str) -> None:
        """Run the calibration data through the model at this path."""


def captured(calibrator: Calibrator, source: LightModel, batch_num: int, path: Path) -> Callable[[], Iterator[Feed]]:
    """The first `batch_num` batches of what is run, as a source of calibration data.

    Args:
        calibrator: the user's.
        source: the float model.
        batch_num: how many batches to keep.
        path: what the model is called that is run; the batches stand beside it and must stay.

    Raises:
        EvaluatorError: the user's code fails.
        DataError: it runs fewer batches.
    """
    specs, kept = input_specs(source.proto), path.parent / "batches"
    kept.mkdir()
    write_model(with_keepers(runnable(source), specs, kept, batch_num), path)
    with calling(calibrator, "calibration", f"{batch_num} batches"):
        calibrator.calibration(str(path))
    return kept_batches(kept, specs, batch_num, f"calibration() of {type(calibrator).__name__}")
