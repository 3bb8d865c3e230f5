"""A model quantized as a Vitis AI strategy says: the same passes and results, with grids of the strategy's."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from amct_onnx.data import CalibrationSource, Feeds, input_specs
from amct_onnx.errors import NotAvailableError
from amct_onnx.formats.quant_info import format_quant_info
from amct_onnx.formats.vitis_json import format_strategy
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.fit_ascend import with_own_tables
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FUSE, REWRITE, TAKE_OVER_GRIDS, calibrate_by_strategy
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.prepare import prepare, require_same
from amct_onnx.progress import Progress
from amct_onnx.results import FILES, INFO_FILE, QDQ_FILE, QuantizeResult, Results, Target, finish, make_strategy_results
from amct_onnx.strategy_config import StrategyConfig
from amct_onnx.strategy_planning import StrategyRules, plan_strategy, plan_tensor_strategies

_log = logging.getLogger("amct_onnx")


def quantize_by_strategy(
    source: LightModel,
    config: StrategyConfig,
    calibration: CalibrationSource | None,
    files: tuple[str | os.PathLike[str], object] | None,
    show: Progress,
    *,
    qdq: bool,
    deploy: bool | None,
    measure_layers: bool,
) -> QuantizeResult:
    """Quantize a float model as a strategy says.

    Args:
        source: the model.
        config: the strategy.
        calibration: representative inputs.
        files: `save_path` and what the model was read from; None keeps the results in memory.
        show: draws the progress.
        qdq: also make the QDQ model.
        deploy: as for `quantize_onnx`.
        measure_layers: also compare every layer of the fake-quant model with the float one.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: as `quantize_onnx`.
    """
    target = None if files is None else Target.of(files[0], {"model": files[1]}, (*FILES, QDQ_FILE, INFO_FILE))
    with show.phase("prepare"):
        state, session = prepare(source)
        rules = StrategyRules.of(state.graph, config)
        state = replace(state, plan=plan_strategy(state, config, rules))
        run_passes(FUSE, state)
    feeds = Feeds(calibration, input_specs(source.proto), config.batch_num)
    expected = session.run(feeds.first, "calibration batch 0")
    del session
    require_same(state, expected, feeds.first)
    run_passes(REWRITE, state)
    state = replace(state, plan=plan_tensor_strategies(state, config, rules))
    batches = show.track(feeds, "calibrate", feeds.total)
    run_passes(calibrate_by_strategy(CalibrationRun(feeds=batches, first=feeds.first)), state)
    state = replace(state, plan=_with_remarks(state))
    with show.phase("write and verify"):
        fitted, results = strategy_results(state, config, qdq=qdq, deploy=deploy)
        return finish(fitted, results, target, expected, feeds.first, measure_layers)


def _with_remarks(state: QuantState) -> QuantPlan:
    """The plan with what the passes found out."""
    notes = dict(state.plan.notes)
    for tensor, reason in state.remarks_on_tensors.items():
        _log.warning("tensor %r stays float: %s", tensor, reason)
    for name, remark in state.remarks.items():
        if name in state.plan.layers:
            notes[name] = (*notes.get(name, ()), remark)
    return replace(state.plan, notes=notes, skipped={**state.gone, **state.plan.skipped, **_of_skipped(state)})


def _of_skipped(state: QuantState) -> dict[str, str]:
    return {name: remark for name, remark in state.remarks.items() if name not in {*state.plan.layers, *state.gone}}


def strategy_results(
    state: QuantState, config: StrategyConfig, *, qdq: bool, deploy: bool | None
) -> tuple[QuantState, Results]:
    """The models, and the state of the deploy model, whose plan says of each layer what is not in it, and why.

    Raises:
        NotAvailableError: a deploy model was asked for, and Ascend's operators cannot compute what a layer decided.
    """
    fitted = with_own_tables(state)
    run_passes(TAKE_OVER_GRIDS, fitted)
    reasons = fitted.left_float
    if deploy and reasons:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(reasons.items())[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise NotAvailableError(f"{len(reasons)} layers cannot be deployed as the strategy says: {listed}{more}")
    notes = dict(state.plan.notes)
    for name, reason in reasons.items():
        notes[name] = (*notes.get(name, ()), f"float in the deploy model: {reason}")
    for name, remark in fitted.remarks.items():
        if name in state.plan.layers:
            notes[name] = (*notes.get(name, ()), f"in the deploy model: {remark}")
    modes = {grid.round_mode for grid in state.grids.values()} - {"half_even"}
    if modes:
        said = "the fake-quant model rounds halves as the strategy says (%s), QDQ and deploy models to even"
        _log.info(said, ", ".join(sorted(modes)))
    fitted = replace(fitted, plan=replace(fitted.plan, notes=notes))
    with_deploy = bool(fitted.layers()) and deploy is not False
    if not with_deploy and deploy is not False:
        _log.warning("no deploy model: no layer of the strategy fits Ascend's operators")
    results = make_strategy_results(
        state,
        fitted if with_deploy else None,
        config=format_strategy(config),
        quant_info=format_quant_info(state, config.target_device),
        qdq=qdq,
    )
    return fitted, results
