"""Automatic calibration of a network that loses accuracy: resnet20 with 6-bit weights, one scale per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import amct_onnx as amct
from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase
from real.networks import Array, network, outputs_of
from real.test_classifiers import cifar10
from real.test_qdq import resnet20_feeds

pytestmark = pytest.mark.network

SIX_BITS = """
batch_num : 2
common_config : { arq_quantize : { channel_wise : false, quant_bits : 6 } }
"""


class Distance(AutoCalibrationEvaluatorBase):
    """Satisfied when the scores are as near to the float ones as `target`, in dB."""

    def __init__(self, calibration: Array, images: Array, target: float) -> None:
        super().__init__()
        self.calibration_feeds, self.feeds, self.target = resnet20_feeds(calibration), resnet20_feeds(images), target
        self.reference: Any = None

    def calibration(self, model_file: str) -> None:
        with amct.calibration_session(model_file) as session:
            for feed in self.calibration_feeds:
                session.run(None, feed)

    def evaluate(self, model_file: str) -> Any:
        (scores,) = outputs_of(Path(model_file), self.feeds).values()
        return scores

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        noise = ((original_metric - new_metric) ** 2).sum() / (original_metric**2).sum()
        return bool(noise <= 10 ** (-self.target / 10)), float(noise)


def test_ranking_by_outputs_needs_fewer_float_layers(tmp_path: Path) -> None:
    path, (calibration, images, _) = network("resnet20-cifar10"), cifar10()
    (tmp_path / "quant.cfg").write_text(SIX_BITS)
    amct.create_quant_config(tmp_path / "config.json", path, config_defination=tmp_path / "quant.cfg")
    found = {}
    for strategy in ("BinarySearch", "Greedy", "GreedyInt16"):
        evaluator = Distance(calibration[:400], images[:500], 25.0)
        result = amct.accuracy_based_auto_calibration(
            path, evaluator, tmp_path / "config.json", tmp_path / "record.txt", tmp_path / "out" / "net", strategy
        )
        assert result.trial is not None
        assert result.trial.satisfied
        found[strategy] = result.trial.mix
    floats = {strategy: len(mix.float_layers) for strategy, mix in found.items()}
    # measured 6 and 12; only the Gemm has weights of 8 bits, so nothing else can have activations of 16
    assert floats["Greedy"] < floats["BinarySearch"], floats
    assert floats["GreedyInt16"] <= floats["Greedy"], floats
