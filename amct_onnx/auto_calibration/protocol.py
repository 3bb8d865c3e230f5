"""The classes that users derive from, with AMCT's names, methods and attributes; and AMCT's own two choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRATEGIES = ("BinarySearch", "Greedy", "GreedyInt16")
"""Those that can be called by name: AMCT's, and the engine's own."""

Verdict = tuple[bool, float]
"""What `metric_eval` says: whether the metric will do, and the loss."""


class AutoCalibrationEvaluatorBase:
    """Runs the user's data through models, and judges what they give. All three methods must be overridden."""

    def calibration(self, model_file: str) -> None:
        """Run at least `batch_num` batches of calibration data through the model at this path.

        The model is opened with `onnxruntime.InferenceSession(model_file, amct_onnx.AMCT_SO)`, or with
        `amct_onnx.calibration_session(model_file)`.
        """
        raise NotImplementedError

    def evaluate(self, model_file: str) -> Any:
        """The metric of the model at this path: a number, or whatever `metric_eval` takes."""
        raise NotImplementedError

    def metric_eval(self, original_metric: Any, new_metric: Any) -> Verdict:
        """Whether the metric of a quantized model will do beside that of the float one; and the loss."""
        raise NotImplementedError


class AutoCalibrationStrategyBase:
    """Decides which layers are float in the next trial.

    Attributes:
        result: what `update_quant_config` may fill in and return.
    """

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.set_flag = True
        self.last_acc_result: dict[str, Any] = {}

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        """Take the sensitivity of every quantized layer; called once, before the first `update_quant_config`."""
        raise NotImplementedError

    def update_quant_config(self, metric_eval: Verdict) -> dict[str, Any]:
        """The next trial, after what `metric_eval` said of the last one; first of the model with all layers quantized.

        Returns:
            "stop_flag": whether this is the final decision; "roll_back_config": layer -> whether it is quantized.
        """
        raise NotImplementedError


class SensitivityBase:
    """Compares what a layer gives in float and quantized."""

    def compare(self, data: NDArray[Any], other: NDArray[Any]) -> float:
        """A value for the layer: the smaller, the more sensitive. `data` is float, `other` quantized."""
        raise NotImplementedError


class BinarySearchStrategy(AutoCalibrationStrategyBase):
    """AMCT's strategy: the shortest sufficient beginning of the ranking, by bisection.

    It begins with half of the layers, and takes it for granted that more float layers are never worse.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ranking: list[str] = []
        self._low, self._high, self._middle = 0, -1, -1
        self._found: dict[str, bool] | None = None

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        """Sort the layers, the smallest value first."""
        self._ranking = sorted(ranking_info, key=lambda name: ranking_info[name])
        self._low, self._high, self._middle = 0, len(self._ranking) - 1, -1
        self._found = None

    def update_quant_config(self, metric_eval: Verdict) -> dict[str, Any]:
        """The middle of what is left; at the end the shortest beginning that sufficed, or all layers where none did."""
        if self._middle >= 0:
            if metric_eval[0]:
                self._found, self._high = self._float_up_to(self._middle), self._middle - 1
            else:
                self._low = self._middle + 1
        if self._low > self._high:
            everything = dict.fromkeys(self._ranking, False)
            return {"stop_flag": True, "roll_back_config": everything if self._found is None else self._found}
        self._middle = (self._low + self._high) // 2
        return {"stop_flag": False, "roll_back_config": self._float_up_to(self._middle)}

    def _float_up_to(self, last: int) -> dict[str, bool]:
        return {name: place > last for place, name in enumerate(self._ranking)}


class CosineSimilaritySensitivity(SensitivityBase):
    """AMCT's measure: half of one plus the cosine of the angle between both, in [0, 1]."""

    def compare(self, data: NDArray[Any], other: NDArray[Any]) -> float:
        """1 where the float values are all zero; 0 where only the quantized ones are."""
        x, y = (np.asarray(values, np.float64).ravel() for values in (data, other))
        if not x.any():
            return 1.0
        if not y.any():
            return 0.0
        return 0.5 + 0.5 * float(x @ y) / (float(np.linalg.norm(x)) * float(np.linalg.norm(y)))
