"""What a long run will take, about, before it is begun: from the shapes and from the time of one batch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from amct_onnx.config import QuantConfig
from amct_onnx.data import Feed
from amct_onnx.passes.calibration import Sizes
from amct_onnx.passes.layers import has_weight
from amct_onnx.passes.learn_layers import sampled_places
from amct_onnx.passes.sample_rows import matrix_shape
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.prepare import prepare

_SECONDS_OF_A_VALUE = 2e-9
"""To find the bin of an activation, and to hand it out of onnxruntime."""

_SECONDS_OF_A_RUN = 0.5
"""Of a calibration, whatever the data: sessions, graphs, searches."""

_PRODUCTS_OF_A_STEP = 3
"""Matrix products in one step of AdaRound: forward, and two backward."""

_BYTES_OF_THE_ENGINE = 300 << 20
"""What Python, onnxruntime and the machine code of the kernels take."""

_COPIES_OF_WEIGHTS = 4
"""The model as read, as quantized, and in two sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """About what runs over one model take.

    op_types: of the layers that will be quantized.
    batches: of the calibration data.
    seconds: for one calibration.
    learning: seconds that a step of AdaRound takes, over all layers.
    memory: bytes at the peak.
    """

    op_types: frozenset[str]
    batches: int
    seconds: float
    learning: float
    memory: int


def forecast(source: LightModel, config: QuantConfig, feeds: Iterable[Feed]) -> Forecast:
    """Look ahead: runs one batch, and goes through the data once to count them.

    Args:
        source: the model.
        config: what is asked for.
        feeds: the calibration data, at least one batch.

    Raises:
        ConfigError, ModelError, DataError, NotAvailableError: as `quantize_onnx`.
    """
    state, session = prepare(source)
    plan = make_plan(state, config)
    batches = 0
    for feed in feeds:
        if batches == 0:
            first = {name: array.copy() for name, array in feed.items()}
        batches += 1
    session.run(first, "calibration batch 0")  # the first run of a session also reserves memory
    started = time.perf_counter()
    session.run(first, "calibration batch 0")
    of_batch = time.perf_counter() - started
    names = [node.name for node in state.graph.nodes if node.name in plan.layers]
    sizes = Sizes(state, first)
    nodes = {node.name: node for node in state.graph.nodes}
    seen = sum(sizes.of(tensor) for tensor in {nodes[name].inputs[0].name for name in names})
    return Forecast(
        op_types=frozenset(nodes[name].op for name in names),
        batches=batches,
        seconds=_SECONDS_OF_A_RUN + batches * (of_batch + seen / 4 * _SECONDS_OF_A_VALUE),
        learning=_learning(state, names),
        memory=_BYTES_OF_THE_ENGINE + _COPIES_OF_WEIGHTS * source.nbytes + 2 * seen,
    )


def _learning(state: QuantState, names: Iterable[str]) -> float:
    """Seconds for a step of AdaRound in every layer, by how fast this machine multiplies."""
    products = 0
    nodes = {node.name: node for node in state.graph.nodes}
    for name in names:
        if has_weight(nodes[name]):
            groups, size = matrix_shape(nodes[name])
            products += sampled_places(nodes[name]) * groups * size * output_channels(nodes[name]) // groups
    square = np.ones((256, 256), np.float32)
    started = time.perf_counter()
    square @ square
    return _PRODUCTS_OF_A_STEP * products * (time.perf_counter() - started) / 256**3
