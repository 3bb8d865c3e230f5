"""What the terminal shows: plans, errors and outputs of models, and what is wrong with a deploy model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from amct_onnx.accuracy_target import TargetSearch
from amct_onnx.deploy.verify import VerifyReport
from amct_onnx.passes.state import QuantPlan
from amct_onnx.report.agreement import Agreement
from amct_onnx.report.compare import TensorError
from amct_onnx.report.page import counted, decibels
from amct_onnx.report.plan_words import activation_text, weight_text
from amct_onnx.report.quantization import FloatNode, QuantizationReport
from amct_onnx.report.simulation import OutputRange

_MOST_OUTPUTS, _MOST_LAYERS = 2, 8

_MOST_WORST, _MOST_FLOATS, _MOST_STEPS = 6, 3, 1
"""Rows of the summary of a quantization, so that all of it stays below a screen, 24 lines of 80 characters."""

_WORST_BESIDE_TARGET = 3
"""Rows of the worst layers where a target takes place too."""


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
                table,
                name,
                op_type,
                activation_text(layer.activation),
                weight_text(layer),
                "; ".join(plan.notes.get(name, ())),
            )
        elif name in plan.skipped and (everything or not plan.skipped[name].endswith("operator that can be quantized")):
            _row(table, name, op_type, "float", "", plan.skipped[name])
        for tensor in plan.tensors:
            if tensor.node == name:
                note = "one scale with the other input" if tensor.joint else "this input alone"
                _row(table, tensor.key, op_type, activation_text(tensor.activation), "", note)
    return table


def error_table(errors: Mapping[str, TensorError], title: str, *, worst_first: bool = False) -> Table:
    """A row for every tensor or layer: SQNR in dB, cosine, largest difference."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", overflow="fold")
    for column in ("SQNR (dB)", "cosine", "largest difference"):
        table.add_column(column, justify="right")
    rows = sorted(errors.items(), key=lambda item: item[1].sqnr) if worst_first else list(errors.items())
    for name, error in rows:
        table.add_row(_text(name), f"{error.sqnr:.2f}", f"{error.cosine:.6f}", f"{error.largest:.4g}")
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


def report_summary(found: QuantizationReport) -> Iterator[Table | Text]:
    """The worst layers, what stayed float, how the target was reached, sizes and times: no more than a screen."""
    title = f"the worst of {counted(len(found.layers), 'layer')}, first batch"
    layers = Table(title=title, title_justify="left", show_edge=False)
    layers.add_column("layer")
    for column in ("SQNR (dB)", "input", "range"):
        layers.add_column(column, overflow="ellipsis", no_wrap=True)
    for layer in found.layers[: _MOST_WORST if found.target is None else _WORST_BESIDE_TARGET]:
        error = "" if layer.error is None else decibels(layer.error.sqnr)
        first = layer.inputs[0]
        _row(layers, _End(layer.name), error, layer.activation, f"{first.low:.4g} to {first.high:.4g}")
    yield layers
    could = [node for node in found.floats if node.could]
    if could:
        yield _floats_table(could)
    if found.target is not None:
        yield _target_table(found.target)
    whole = next(iter(found.sizes.values())) or 1
    sizes = (f"{name} {size:,} bytes ({100 * size / whole:.0f} %)" for name, size in found.sizes.items())
    yield Text("sizes: " + ", ".join(sizes))
    yield Text("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items()))


def _floats_table(nodes: Sequence[FloatNode]) -> Table:
    more = f", {_MOST_FLOATS} of them" if len(nodes) > _MOST_FLOATS else ""
    title = f"{counted(len(nodes), 'layer')} left float that could have been quantized{more}"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("node", max_width=50)
    table.add_column("reason", overflow="ellipsis", no_wrap=True, max_width=120)
    for node in nodes[:_MOST_FLOATS]:
        _row(table, _End(node.name), node.reason)
    return table


class _End:
    """A name on one line; where it does not fit, its end: names of nodes begin alike."""

    def __init__(self, name: str) -> None:
        self._text = " ".join(_text(name).plain.split("\n"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, cell_len(self._text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._text
        while cell_len(shown) > options.max_width > 1:
            shown = f"…{shown[2:]}"
        yield Text(shown, no_wrap=True, overflow="ellipsis")


def _target_table(search: TargetSearch) -> Table:
    """The first step, and the last ones; the chosen one among them."""
    title = Text(f"target: {search.target}, measured on {search.measured_on}")
    table = Table(title=title, title_justify="left", show_edge=False)
    for column in ("step", "float layers", "16-bit activations", "measured", "reached"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    numbered = list(enumerate(search.steps, 1))
    tried = [entry for entry in numbered[1:] if entry[1] is not search.chosen][-_MOST_STEPS:]
    for number, step in numbered:
        if number == 1 or step is search.chosen or (number, step) in tried:
            mark = " <" if step is search.chosen else ""
            counts = (str(len(step.float_layers)), str(len(step.int16_layers)))
            _row(table, f"{number}{mark}", *counts, step.shown, "yes" if step.reached else "no")
    return table


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


def _row(table: Table, *cells: str | _End) -> None:
    table.add_row(*(_text(cell) if isinstance(cell, str) else cell for cell in cells))


def _text(words: str) -> Text:
    """Names hold brackets, which are shown as they are, not as markup; what would steer a terminal is spelled out."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in words))
