"""What a long run will take, about, before it is begun: from the shapes, and from the time of one batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from amct_onnx.config import QuantConfig
from amct_onnx.data import Feed, copy_of
from amct_onnx.passes.calibration import Sizes
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.prepare import prepare

_SECONDS_OF_A_VALUE = 3e-9
"""To hand a value out of onnxruntime, and to count it."""

_SECONDS_OF_A_RUN = 1.5
"""Of a calibration, whatever the data: graphs, sessions, searches."""

_BYTES_OF_THE_ENGINE = 300 << 20
"""What Python, onnxruntime and the machine code of the kernels take."""

_COPIES_OF_WEIGHTS, _BATCHES_AT_ONCE = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """About what calibrating a model takes.

    op_types: of the layers that will be quantized.
    seconds: for one calibration.
    memory: bytes at the peak.
    """

    op_types: frozenset[str]
    seconds: float
    memory: int

    def describe(self, calibrations: int) -> str:
        """For so many calibrations, in words."""
        seconds = self.seconds * calibrations
        took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return f"up to {calibrations} calibrations, about {took} and {self.memory / 2**30:.1f} GB"


def forecast(source: LightModel, config: QuantConfig, feeds: Iterable[Feed]) -> Forecast:
    """Look ahead: runs the first batch, and goes through the data once to count the batches.

    Args:
        source: the model.
        config: what is asked for.
        feeds: the calibration data, at least one batch.

    Raises:
        ConfigError, ModelError, DataError: as `quantize_onnx`.
    """
    state, session = prepare(source)
    layers = make_plan(state, config).layers
    batches, first = 0, Feed()
    for batches, feed in enumerate(feeds, 1):
        first = copy_of(feed) if batches == 1 else first
    of_batch = math.inf
    for _ in range(2):  # the first run of a session also reserves memory
        started = time.perf_counter()
        session.run(first, "calibration batch 0")
        of_batch = min(of_batch, time.perf_counter() - started)
    sizes = Sizes(state, first)
    seen = sum(sizes.of(name) for name in {n.inputs[0].name for n in state.graph.nodes if n.name in layers})
    return Forecast(
        op_types=frozenset(layer.op_type for layer in layers.values()),
        seconds=_SECONDS_OF_A_RUN + batches * (of_batch + seen / 4 * _SECONDS_OF_A_VALUE),
        memory=_BYTES_OF_THE_ENGINE + _COPIES_OF_WEIGHTS * source.nbytes + _BATCHES_AT_ONCE * seen,
    )
