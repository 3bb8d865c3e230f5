"""What the terminal shows: plans, errors and outputs of models, and what is wrong with a deploy model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from amct_onnx.deploy.verify import VerifyReport
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.state import LayerPlan, QuantPlan
from amct_onnx.report.agreement import Agreement
from amct_onnx.report.agreement_page import decibels
from amct_onnx.report.compare import TensorError
from amct_onnx.report.simulation import OutputRange

_MOST_OUTPUTS, _MOST_LAYERS = 2, 8


def plan_table(plan: QuantPlan, op_types: Mapping[str, str], *, everything: bool) -> Table:
    """A row for every layer, and for every node left out that somebody might ask about.

    op_types: node -> operator. everything: also the nodes whose operator is never quantized.
    """
    table = Table(title=f"{len(plan.layers)} layers to quantize", title_justify="left")
    for column in ("node", "operator", "input", "weight", "reason or note"):
        table.add_column(column, overflow="fold")
    for name, op_type in op_types.items():
        if name in plan.layers:
            layer = plan.layers[name]
            _row(
                table, name, op_type, _activation(layer.activation), _weight(layer), "; ".join(plan.notes.get(name, ()))
            )
        elif name in plan.skipped and (everything or not plan.skipped[name].endswith("operator that can be quantized")):
            _row(table, name, op_type, "float", "", plan.skipped[name])
        for tensor in plan.tensors:
            if tensor.node == name:
                note = "one scale with the other input" if tensor.joint else "this input alone"
                _row(table, tensor.key, op_type, _activation(tensor.activation), "", note)
    return table


def error_table(errors: Mapping[str, TensorError], title: str, *, worst_first: bool = False) -> Table:
    """A row for every tensor or layer: SQNR in dB, cosine, largest difference."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", overflow="fold")
    for column in ("SQNR (dB)", "cosine", "largest difference"):
        table.add_column(column, justify="right")
    rows = sorted(errors.items(), key=lambda item: item[1].sqnr) if worst_first else list(errors.items())
    for name, error in rows:
        table.add_row(Text(name), f"{error.sqnr:.2f}", f"{error.cosine:.6f}", f"{error.largest:.4g}")
    return table


def agreement_tables(found: Agreement) -> Iterator[Table]:
    """The outputs of every model, and the layers that part most: no more than a screen."""
    outputs = Table(title=f"{found.batches} batches, outputs against the float model", title_justify="left")
    outputs.add_column("output", overflow="fold")
    for column in ("model", "SQNR (dB)", "cosine", "network first apart from fake-quant at"):
        outputs.add_column(column, overflow="fold")
    for output, errors in list(found.outputs.items())[:_MOST_OUTPUTS]:
        for who, error in errors.items():
            _row(outputs, output, who, decibels(error.sqnr), f"{error.cosine:.6f}", _parting(found, who))
    yield outputs
    worst = sorted(found.layers, key=lambda layer: min(c.against_fake_quant.sqnr for c in layer.chips.values()))
    layers = Table(title=f"the worst of {len(found.layers)} layers, against the fake-quant model", title_justify="left")
    layers.add_column("layer", overflow="fold")
    for profile in found.profiles:
        layers.add_column(f"{profile} (dB, cause)", overflow="fold")
    for layer in worst[:_MOST_LAYERS]:
        chips = [layer.chips[profile] for profile in found.profiles]
        cells = [f"{decibels(chip.against_fake_quant.sqnr)} {chip.main_cause}".strip() for chip in chips]
        _row(layers, layer.layer, *cells)
    yield layers


def _parting(found: Agreement, who: str) -> str:
    layer = found.parting(who) if who in found.profiles else None
    return "" if layer is None else f"{layer.layer}: {layer.chips[who].main_cause}"


def range_table(ranges: Mapping[str, OutputRange], title: str) -> Table:
    """A row for every output: shape, smallest and largest value."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", overflow="fold")
    for column in ("shape", "smallest", "largest"):
        table.add_column(column, justify="right")
    for name, found in ranges.items():
        _row(table, name, str(list(found.shape)), f"{found.smallest:.6g}", f"{found.largest:.6g}")
    return table


def findings_table(report: VerifyReport) -> Table:
    """A row for every finding, errors first, and below them what could not be checked."""
    counts = f"{len(report.errors)} errors, {len(report.warnings)} warnings in {report.layers} quantized layers"
    table = Table(title=Text(f"{report.model}: {counts}"), title_justify="left")
    table.add_column("rule", justify="right")
    for column in ("severity", "node", "found", "expected"):
        table.add_column(column, overflow="fold")
    for finding in (*report.errors, *report.warnings):
        _row(table, str(finding.rule), finding.severity, finding.node, finding.found, finding.expected)
    for entry in report.unchecked:
        more = ", ..." if entry.count > len(entry.nodes) else ""
        _row(table, str(entry.rule), "not checked", ", ".join(entry.nodes) + more, entry.reason, "")
    return table


def _row(table: Table, *cells: str) -> None:
    """Names hold brackets and other marks: they are shown as they are, not as markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _activation(activation: Ifmr | Hfmg | QuantParams | TensorStrategy) -> str:
    if isinstance(activation, QuantParams):
        return f"int{activation.num_bits} given"
    if isinstance(activation, TensorStrategy):
        return _strategy(activation)
    algorithm = "ifmr" if isinstance(activation, Ifmr) else "hfmg"
    sign = "asymmetric" if activation.asymmetric else "symmetric"
    return f"int{activation.num_bits} {sign} {algorithm}"


def _strategy(tensor: TensorStrategy) -> str:
    if tensor.datatype != "int":
        return tensor.datatype
    sign = "symmetric" if tensor.symmetry else "asymmetric"
    return f"int{tensor.bit_width} {sign} {tensor.method} {tensor.scale_type}"


def _weight(layer: LayerPlan) -> str:
    if layer.op_type == "AveragePool":
        return ""
    weight = layer.weight
    balanced = ", dmq" if layer.balancer is not None else ""
    if isinstance(weight, TensorStrategy):
        return _strategy(weight)
    if isinstance(weight, Nuq):
        return f"nuq, {weight.num_steps} integers{balanced}"
    if isinstance(weight, QuantParams):
        return f"int{weight.num_bits} {'per tensor' if weight.axis is None else 'per channel'} given"
    return f"int{weight.num_bits} {'per channel' if weight.channel_wise else 'per tensor'}{balanced}"
