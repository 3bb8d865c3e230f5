"""A model quantized as a Vitis AI strategy says: the same passes and results, with grids of the strategy's."""

from __future__ import annotations

import logging
from dataclasses import replace

from amct_onnx.errors import ConfigError, NotAvailableError
from amct_onnx.formats.quant_info import format_quant_info
from amct_onnx.formats.vitis_json import format_strategy
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.fit_ascend import with_own_tables
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import REWRITE, TAKE_OVER_GRIDS, calibrate_by_strategy
from amct_onnx.passes.state import QuantState
from amct_onnx.results import Results, make_strategy_results
from amct_onnx.strategy_config import StrategyConfig
from amct_onnx.strategy_planning import StrategyRules, plan_tensors

_log = logging.getLogger("amct_onnx")


def calibrated_by_strategy(
    state: QuantState, config: StrategyConfig, rules: StrategyRules, run: CalibrationRun
) -> QuantState:
    """The state with the grids of every planned tensor.

    Raises:
        ConfigError: an executor was given; each batch is quantized with what the batches before it asked for.
    """
    if run.executor is not None:
        raise ConfigError("a Vitis AI strategy looks at the batches one after the other; leave the executor out")
    run_passes(REWRITE, state)
    state = replace(state, plan=plan_tensors(state, config, rules))
    run_passes(calibrate_by_strategy(run), state)
    remarks = dict(state.plan.notes)
    for tensor, reason in state.remarks_on_tensors.items():
        _log.warning("tensor %r stays float: %s", tensor, reason)
    for name, remark in state.remarks.items():
        if name in state.plan.layers:
            remarks[name] = (*remarks.get(name, ()), remark)
    return replace(state, plan=replace(state.plan, notes=remarks))


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
