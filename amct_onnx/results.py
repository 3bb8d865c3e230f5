"""What a run gives: models, record and configuration; written, loaded again and run before they are in place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amct_onnx.accuracy_target import TargetSearch
from amct_onnx.config import LayerConfig
from amct_onnx.data import Feed
from amct_onnx.deploy.verify import Finding, verify_deploy_model
from amct_onnx.errors import ModelError, OutputError, PassError
from amct_onnx.formats.model_file import read_model, require_place, staged, write_model
from amct_onnx.formats.record import LayerRecord, format_record
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.convert_opset import LOWEST_QDQ, with_qdq_opset
from amct_onnx.passes.graph import Array, Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import DEPLOY, FAKE_QUANT, FAKE_QUANT_GRIDS, QDQ, QDQ_GRIDS
from amct_onnx.passes.session import open_session
from amct_onnx.passes.state import LayerPlan, Pass, QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import Comparison, TensorError, compare_models, compare_outputs
from amct_onnx.report.quantization import QuantizationReport
from amct_onnx.report.quantization_page import quantization_page

_log = logging.getLogger("amct_onnx")

FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt", "config.json")
"""What the names of the files of a calibrated model end in."""

CONVERTED_FILES = FILES[:3]
"""The same where nothing was configured: the scales were known before."""

QDQ_FILE = "qdq_model.onnx"
INFO_FILE = "quant_info.json"

REPORT_FILES = ("report.html", "report.json")
"""Where a report was asked for."""

_AGREES = 30.0
"""SQNR in dB above which the QDQ model counts as computing what the fake-quant model does.

Values that lie almost halfway between two integers may fall on either side, which later layers make more of.
"""

_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """What was found for one layer.

    activation: scale and offset of its input, per tensor.
    weight: scale of its weight, [] or [Cout], or of its second input where that is an activation; None for a layer
        without either.
    balance: what the weight was multiplied by for each input channel, [Cin]; None where it was not balanced.
    hidden, recurrent: of the hidden state of an LSTM or GRU, and of the weight that it is multiplied by; else None.
    """

    activation: QuantParams
    weight: QuantParams | None
    balance: NDArray[np.float32] | None = None
    hidden: QuantParams | None = None
    recurrent: QuantParams | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """What `quantize_onnx`, `convert_model` or `import_qdq` made.

    deploy_model, fake_quant_model: paths where `save_path` was given, else models in memory. A Vitis AI strategy that
        Ascend's operators cannot compute anywhere gives no deploy model and no record: None.
    record, config: paths where `save_path` was given, else the texts. There is a configuration only where the model was
        calibrated; else it is None.
    plan: the final decisions: `layers` are quantized, `skipped` says of every other node why not.
    params: layer, or "<node>:<input>" of a tensor quantized by itself -> scales and offsets.
    output_errors: output -> difference between the model that was read and the fake-quant model, on the first batch.
    layer_errors: layer -> the same, where it was asked for.
    qdq_model: as the other models where it was asked for, else None.
    quant_info: scales or positions of a Vitis AI strategy as its quant_info.json has them, as `record`; else None.
    report: what was decided and why, where it was asked for, else None.
    report_html, report_json: as `record` where a report was asked for, else None.
    target: how the accuracy target was reached; None where there was none.
    """

    deploy_model: Path | onnx.ModelProto | None
    fake_quant_model: Path | onnx.ModelProto
    record: Path | str | None
    config: Path | str | None
    plan: QuantPlan
    params: Mapping[str, LayerParams]
    output_errors: Mapping[str, TensorError]
    layer_errors: Mapping[str, TensorError] = field(default_factory=dict)
    qdq_model: Path | onnx.ModelProto | None = None
    quant_info: Path | str | None = None
    report: QuantizationReport | None = None
    report_html: Path | str | None = None
    report_json: Path | str | None = None
    target: TargetSearch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the files go."""

    directory: Path
    prefix: str

    @classmethod
    def of(cls, save_path: str | os.PathLike[str], sources: Mapping[str, object], endings: Iterable[str]) -> Target:
        """Take `save_path` apart into directory and prefix.

        Args:
            save_path: what the user gives.
            sources: what is read, which may be paths or pairs of them, under the word for it.
            endings: of the files that will be written.

        Raises:
            OutputError: it is no path, one of the files is one of those that are read, or they cannot be written there.
        """
        if not isinstance(save_path, (str, os.PathLike)):
            raise OutputError(f"save_path is a {type(save_path).__name__}; give a directory and a prefix as a path")
        directory, prefix = os.path.split(os.fspath(save_path))
        if prefix in (".", ".."):
            directory, prefix = os.path.join(directory, prefix), ""
        if not os.fspath(save_path):
            raise OutputError("save_path is empty; give a directory and a prefix, such as out/net")
        if "\0" in os.fspath(save_path):
            raise OutputError(f"save_path {os.fspath(save_path)!r} holds a null character, which no file name can")
        target = cls(directory=Path(directory or "."), prefix=f"{prefix}_" if prefix else "")
        files = {
            os.path.realpath(path): word
            for word, source in sources.items()
            for path in (source if isinstance(source, tuple) else [source])
            if isinstance(path, (str, os.PathLike))
        }
        paths = [target.path(ending) for ending in endings]
        for path in paths:
            if (word := files.get(os.path.realpath(path))) is not None:
                raise OutputError(f"{path}: is the {word} that is read; choose another save_path")
        require_place(target.directory, [path.name for path in paths])  # not after a run of minutes
        return target

    def path(self, ending: str) -> Path:
        """Of the file with this ending."""
        return self.directory / f"{self.prefix}{ending}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that is written, in memory."""

    deploy: LightModel | None
    fake_quant: LightModel
    record: str | None
    config: str | None = None
    qdq: LightModel | None = None
    quant_info: str | None = None

    def files(self) -> dict[str, LightModel | str]:
        """Ending of each file -> what is written into it."""
        contents = (self.deploy, self.fake_quant, self.record, self.config, self.qdq, self.quant_info)
        named = zip((*FILES, QDQ_FILE, INFO_FILE), contents, strict=True)
        return {ending: content for ending, content in named if content is not None}

    def sizes(self) -> dict[str, int]:
        """Ending of each model's file -> about its bytes."""
        return {ending: content.nbytes for ending, content in self.files().items() if isinstance(content, LightModel)}


def make_results(state: QuantState, config: str | None = None, *, qdq: bool = False) -> Results:
    """Rewrite the graph, whose scales are known, into its forms, and write down the record.

    config: the configuration as text, where there is one.
    qdq: make the QDQ model too.
    """
    return Results(
        deploy=_rewritten(state, DEPLOY),
        fake_quant=_rewritten(state, FAKE_QUANT),
        record=format_record(layer_records(state)),
        config=config,
        qdq=_rewritten(_raised(state), QDQ) if qdq else None,
    )


def make_strategy_results(
    state: QuantState, deploy: QuantState | None, *, config: str, quant_info: str, qdq: bool = False
) -> Results:
    """The same for the grids of a strategy.

    deploy: the state that the deploy model is made from; None for no deploy model.
    quant_info: what was found, as text.
    """
    return Results(
        deploy=None if deploy is None else _rewritten(deploy, DEPLOY),
        fake_quant=_rewritten(state, FAKE_QUANT_GRIDS),
        record=None if deploy is None else format_record(layer_records(deploy)),
        config=config,
        qdq=_rewritten(_raised(state), QDQ_GRIDS) if qdq else None,
        quant_info=quant_info,
    )


def _raised(state: QuantState) -> QuantState:
    """The state over a graph whose opset the QDQ form can be written in."""
    if state.graph.opset >= LOWEST_QDQ:
        return state
    return replace(state, graph=Graph.of_model(with_qdq_opset(state.graph.to_light())))


def _rewritten(state: QuantState, passes: tuple[Pass, ...]) -> LightModel:
    copy = replace(state, graph=state.graph.copy())
    run_passes(passes, copy)
    return copy.graph.to_light()


def layer_records(state: QuantState) -> dict[str, LayerRecord]:
    """What a record says of all that is planned, as far as it is known: a tensor without a scale has no entry."""
    records = {layer.name: _record(state, layer) for layer in state.layers()}
    for tensor in state.tensors():
        if tensor.key in state.activations:
            records[tensor.key] = tensor_record(state.activations[tensor.key])
    return records


def tensor_record(params: QuantParams) -> LayerRecord:
    """What a record says of a tensor that is quantized by itself."""
    return LayerRecord(
        scale_d=float(params.scale),
        offset_d=int(params.offset),
        is_tensor_quantize=True,
        act_type=f"INT{params.num_bits}",
    )


def _record(state: QuantState, layer: LayerPlan) -> LayerRecord:
    activation, weight = state.activations.get(layer.name), state.weights.get(layer.name)
    scales = np.ones(1, np.float32) if weight is None else weight.scale.ravel()
    return LayerRecord(
        scale_d=None if activation is None else float(activation.scale),
        offset_d=None if activation is None else int(activation.offset),
        scale_w=tuple(float(s) for s in scales),
        offset_w=(0,) * len(scales),
        tensor_balance_factor=tuple(float(f) for f in state.balances.get(layer.name, ())),
        act_type=None if activation is None else f"INT{activation.num_bits}",
        cluster=tuple(int(centre) for centre in state.clusters.get(layer.name, ())),
        wts_type=None if weight is None else f"INT{weight.num_bits}",
        fakequant_precision_mode="FORCE_FP16_QUANT" if layer.name in state.plan.cut_scales else None,
        **_state_fields(state, layer.name),
    )


def _state_fields(state: QuantState, layer: str) -> dict[str, Any]:
    """What a record says of the hidden state of an LSTM or GRU and its weight."""
    if layer not in state.hidden:
        return {}
    hidden, recurrent = state.hidden[layer], state.recurrent[layer].scale.ravel()
    return {
        "scale_h": float(hidden.scale),
        "offset_h": int(hidden.offset),
        "scale_r": tuple(float(s) for s in recurrent),
        "offset_r": (0,) * len(recurrent),
    }


def json_layers(plan: QuantPlan) -> dict[str, tuple[bool, LayerConfig]]:
    """Every layer that can be quantized: whether it was to be, and how it is or would be."""
    wanted = {**plan.layers, **plan.unfit}
    found = {layer.name: (True, _config_of(layer)) for layer in wanted.values()}
    return found | {layer.name: (False, _config_of(layer)) for layer in plan.disabled.values()}


def _config_of(layer: LayerPlan) -> LayerConfig:
    given = (QuantParams, TensorStrategy)
    assert not isinstance(layer.activation, given), "it is no configuration of AMCT's"
    assert not isinstance(layer.weight, given), "it is no configuration of AMCT's"
    assert not isinstance(layer.balancer, tuple), "given factors are no configuration"
    return LayerConfig(activation=layer.activation, weight=layer.weight, balancer=layer.balancer)


def finish(
    state: QuantState,
    results: Results,
    target: Target | None,
    expected: Mapping[str, Array],
    feed: Feed,
    measure_layers: bool,
    make_report: Callable[[Comparison], QuantizationReport] | None = None,
) -> QuantizeResult:
    """Write the files if asked to, load them again, run them, and only then put them into place.

    make_report: of the errors of outputs and layers; None for no report.
    """
    files = results.files()
    reports: list[QuantizationReport] = []

    def texts(found: Comparison) -> dict[str, str]:
        reports.extend([] if make_report is None else [make_report(found)])
        return {ending: text for report in reports for ending, text in _report_texts(report).items()}

    more, measure_layers = (texts, True) if make_report else (None, measure_layers)
    found = write_verified(state, files, target, expected, feed, measure_layers=measure_layers, more=more)
    if target is not None:
        endings = (*files, *(REPORT_FILES if make_report else ()))
        result = _result(state, found, {ending: target.path(ending) for ending in endings})
    else:
        whole = {key: content.whole() if isinstance(content, LightModel) else content for key, content in files.items()}
        result = _result(state, found, {**whole, **texts(found)})
    return replace(result, report=reports[0]) if reports else result


def _report_texts(report: QuantizationReport) -> dict[str, str]:
    return dict(zip(REPORT_FILES, (quantization_page(report), report.to_json()), strict=True))


def write_verified(
    state: QuantState,
    files: Mapping[str, LightModel | str],
    target: Target | None,
    expected: Mapping[str, Array],
    feed: Feed | None,
    *,
    measure_layers: bool = False,
    more: Callable[[Comparison], Mapping[str, str]] | None = None,
) -> Comparison:
    """Write files that belong together, load them again, run them, and only then put them into place.

    Args:
        state: of the float graph that the models were made from.
        files: ending -> what is written into it; a deploy and a fake-quant model among them.
        target: where they go; None checks them in memory.
        expected: what the float model makes of `feed`.
        feed: the first batch; None only checks that the fake-quant model is ready to run.
        measure_layers: compare every layer too.
        more: texts that tell of what was found, ending of the file -> text, beside the others; not used in memory.
    """
    models = {ending: content for ending, content in files.items() if isinstance(content, LightModel)}
    if target is None:
        return _verified(state, models, expected, feed, measure_layers)
    endings = (*files, *(REPORT_FILES if more else ()))
    with staged(target.directory, [target.path(ending).name for ending in endings]) as stage:
        for ending, content in files.items():
            path = stage / target.path(ending).name
            if isinstance(content, LightModel):
                write_model(content, path)
                models[ending] = read_model(path)
            else:
                path.write_text(content, encoding="utf-8")
        found = _verified(state, models, expected, feed, measure_layers)
        for ending, text in (more(found) if more else {}).items():
            (stage / target.path(ending).name).write_text(text, encoding="utf-8")
        return found


def _verified(
    state: QuantState,
    models: Mapping[str, LightModel],
    expected: Mapping[str, Array],
    feed: Feed | None,
    measure_layers: bool,
) -> Comparison:
    """Run the fake-quant model against the float one, and check that the others have the same ends.

    Raises:
        ModelError: one of the models does not run, two of them have different inputs or outputs, or the QDQ model does
            not compute what the fake-quant model does.
        PassError: ATC would not take the deploy model.
    """
    fake_quant = models["fake_quant_model.onnx"]
    wanted = _ends_of(fake_quant)
    for ending, model in models.items():
        if _ends_of(model) != wanted:
            raise ModelError(
                f"the inputs and outputs of {ending} are {_ends_of(model)}, the fake-quant model's {wanted}"
            )
    if "deploy_model.onnx" in models:
        _require_rules_kept(state, models["deploy_model.onnx"])
    if feed is None:
        open_session(fake_quant, "the quantized model")
        return Comparison(outputs={}, layers={})
    outputs = compare_outputs(expected, fake_quant, feed, "the quantized model")
    if QDQ_FILE in models:
        is_even = all(grid.round_mode == "half_even" for grid in state.grids.values())
        _require_agreement(models[QDQ_FILE], fake_quant, feed, outputs, strict=is_even)
    layers = compare_models(state.graph.to_light(), fake_quant, [feed]).layers if measure_layers else {}
    return Comparison(outputs=outputs, layers=layers)


def _ends_of(model: LightModel) -> list[str]:
    return [value.name for value in (*model.proto.graph.input, *model.proto.graph.output)]


def _require_agreement(
    qdq: LightModel, fake_quant: LightModel, feed: Feed, distances: Mapping[str, TensorError], *, strict: bool
) -> None:
    """The QDQ model as it stands must compute what the fake-quant model does; what an optimizer makes of it, should.

    distances: output -> how far the fake-quant model is from the float one; the two may not be further from each other.
    strict: both round alike; else a difference is told, no more: QuantizeLinear sends halves to the even neighbour.
    """
    expected = open_session(fake_quant, "the quantized model", optimize=False).run(feed, "batch 0")
    for optimize in (False, True):
        for name, error in compare_outputs(expected, qdq, feed, "the QDQ model", optimize=optimize).items():
            is_far = error.sqnr < min(_AGREES, distances[name].sqnr) and error.largest > 1e-4
            if not is_far or expected[name].dtype.kind != "f":
                continue
            said = f"output {name!r} of the QDQ model is {error.sqnr:.1f} dB from that of the fake-quant model"
            if not optimize and strict:
                raise ModelError(f"{said}; please report the model")
            where = "onnxruntime optimizes it on this processor" if strict else "halves are rounded otherwise"
            _log.warning("%s where %s", said, where)


def _require_rules_kept(state: QuantState, deploy: LightModel) -> None:
    """ATC must take the deploy model. What it would not take of the float model either is the model's own affair."""
    report = verify_deploy_model(deploy.proto, record=layer_records(state), weights=deploy.weights)
    for finding in report.warnings:
        _log.debug("%s", _sentence(finding))
    if report.errors:
        light = state.graph.to_light()
        own = set(verify_deploy_model(light.proto, weights=light.weights).errors)
        for finding in report.errors:
            if finding in own:
                _log.warning("ATC would not take the model as it is: %s", _sentence(finding))
        if made := [_sentence(finding) for finding in report.errors if finding not in own]:
            listed = " | ".join(made[:_MOST_SHOWN])
            raise PassError(f"the deploy model breaks the rules of docs/verify.md {len(made)} times: {listed}")


def _sentence(finding: Finding) -> str:
    return f"{finding.node or 'the model'}: {finding.found}; rule {finding.rule}: {finding.expected}"


def _result(state: QuantState, found: Comparison, given: Mapping[str, Any]) -> QuantizeResult:
    """`given`: ending of each file -> its path, or what would be in it."""
    plan = state.plan
    for name, error in found.outputs.items():
        _log.info("output %r: %.1f dB, cosine %.6f", name, error.sqnr, error.cosine)
    if plan.tensors:
        _log.info("%d single tensors quantized", len(plan.tensors))
    _log.info("%d layers quantized, %d nodes left as they are", len(plan.layers), len(plan.skipped))
    deploy, fake_quant, record = (given.get(ending) for ending in CONVERTED_FILES)
    assert fake_quant is not None
    return QuantizeResult(
        deploy_model=deploy,
        fake_quant_model=fake_quant,
        record=record,
        config=given.get("config.json"),
        qdq_model=given.get(QDQ_FILE),
        quant_info=given.get(INFO_FILE),
        report_html=given.get(REPORT_FILES[0]),
        report_json=given.get(REPORT_FILES[1]),
        plan=plan,
        params={
            name: LayerParams(
                activation=state.activations[name],
                weight=state.weights.get(name),
                balance=state.balances.get(name),
                hidden=state.hidden.get(name),
                recurrent=state.recurrent.get(name),
            )
            for name in (*plan.layers, *(tensor.key for tensor in plan.tensors))
            if name in state.activations and name not in state.left_float
        },
        output_errors=found.outputs,
        layer_errors=found.layers,
    )
