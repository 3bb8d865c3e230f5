"""From a float model, a configuration and data to a model whose scales are known, which is not rewritten yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from amct_onnx.config import QuantConfig
from amct_onnx.data import CalibrationSource, Feed, Feeds, input_specs
from amct_onnx.formats.amct_json import format_json
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.fix_global_pools import fix_global_pools
from amct_onnx.passes.graph import Array
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.observe import warm_up_beside
from amct_onnx.passes.pipelines import FUSE, calibrate
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.prepare import final_plan, prepare, require_same
from amct_onnx.progress import Progress
from amct_onnx.results import json_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A model whose scales are known and which is not rewritten yet.

    state: the prepared float graph, the final plan and its scales.
    config: what was asked for.
    feeds: the calibration batches.
    run: how they were run: with what memory, and in whose workers.
    batch_num: how many of them were used.
    expected: what the model makes of the first one.
    """

    state: QuantState
    config: QuantConfig
    feeds: Feeds
    run: CalibrationRun
    batch_num: int
    expected: Mapping[str, Array]

    def text(self, plan: QuantPlan | None = None) -> str:
        """The configuration as AMCT's JSON, of another plan than the own where one is given."""
        return format_json(self.config, json_layers(plan or self.state.plan), batch_num=self.batch_num)


def calibrated(
    source: LightModel,
    config: QuantConfig,
    calibration: CalibrationSource | None,
    *,
    memory_limit: int | None = None,
    executor: Executor | None = None,
    show: Progress,
) -> Calibrated:
    """Prepare a model and find its scales; the arguments are those of `quantize_onnx`.

    Raises:
        ConfigError, ModelError, DataError, NotAvailableError: as `quantize_onnx`.
    """
    with show.phase("prepare"):
        state, session = prepare(source)
        if config.global_pools:
            run_passes((fix_global_pools(),), state)
        state = replace(state, plan=make_plan(state, config))
        if executor is None:  # else its processes may be forked off while the thread holds locks
            warm_up_beside(state.plan)
        format_json(config, json_layers(state.plan))  # a layer that cannot be written down is found out now
        run_passes(FUSE, state)
    feeds = Feeds(calibration, input_specs(source.proto), state.plan.batch_num)
    if any(isinstance(layer.weight, AdaRound) for layer in state.plan.layers.values()):
        feeds.require_again("to learn the rounding of weights (ada_quantize)")
    expected = session.run(feeds.first, "calibration batch 0")
    del session
    require_same(state, expected, feeds.first)
    shown = _Shown(feeds, show)
    run = CalibrationRun(
        feeds=shown,
        first=feeds.first,
        silent=feeds,
        track=show.track,
        memory_limit=memory_limit,
        executor=executor,
    )
    run_passes(calibrate(run), state)
    state = replace(state, plan=final_plan(state))
    return Calibrated(state=state, config=config, feeds=feeds, run=run, batch_num=shown.count, expected=expected)


class _Shown:
    """The batches, with progress drawn for each time that they are gone through.

    Attributes:
        count: how many there are, once they were gone through.
    """

    def __init__(self, feeds: Feeds, show: Progress) -> None:
        self._feeds, self._show = feeds, show
        self.count = 0

    def __iter__(self) -> Iterator[Feed]:
        self.count = 0
        for feed in self._show.track(self._feeds, "calibrate", self._feeds.total):
            self.count += 1
            yield feed
