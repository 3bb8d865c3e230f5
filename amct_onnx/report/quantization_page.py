"""The report of a quantization as one page of HTML that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from amct_onnx.accuracy_target import TargetSearch
from amct_onnx.kernels.distribution import Distribution, RangeCandidate
from amct_onnx.report.compare import TensorError
from amct_onnx.report.page import counted, decibels, document, table
from amct_onnx.report.quantization import FloatNode, InputRange, LayerReport, QuantizationReport

_POOR = 20.0
"""SQNR in dB below which a layer stands out."""

_WIDTH, _BARS_HEIGHT, _ROW, _MARGIN = 400, 96, 13, 4
_BARS, _CHOSEN, _OTHERS = "#9aa5b1", "#1b6ca8", ("#c2410c", "#15803d", "#7e22ce", "#666666")

_STYLE = """
.layers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 1em }
figure { margin: 0; padding: .7em; border: 1px solid #ddd; border-radius: 6px; overflow-wrap: anywhere; min-width: 0 }
figcaption { font-size: 13px } figcaption b { font-size: 14px } .poor { color: #b91c1c } .dim { color: #666 }
details ul { font-size: 13px; overflow-wrap: anywhere } .why { text-align: left; min-width: 16em }
"""

_LEGEND = (
    ("SQNR", "how loud the signal is against the error, in dB: 20 is an error of a tenth, 40 of a hundredth."),
    (
        "bars",
        "how often values of the input were seen on the calibration data. Heights are logarithms of the counts: a bar "
        "half as high stands for far fewer values.",
    ),
    ("chosen", "what the integers reach (blue); values beyond are clipped. real = (q - offset) * scale."),
    ("considered", "other ranges, each a line below the bars; min-max is all that was seen."),
    ("errors of layers", "of what the layer gives in the whole network, so with what it inherits. First batch only."),
)


def quantization_page(found: QuantizationReport) -> str:
    """The page as text. What follows <section id="times"> is all that a repeated run writes otherwise."""
    could = sum(node.could for node in found.floats)
    return document(
        "Quantization report",
        [
            "<h1>Quantization report</h1>",
            f"<p>{counted(len(found.layers), 'layer')} quantized, calibrated with {counted(found.batches, 'batch')}; "
            f"{counted(could, 'layer')} left float that could have been quantized.</p>",
            "<h2>Outputs against the float model, first batch</h2>",
            *table(("output", "SQNR (dB)", "cosine", "largest difference"), _output_rows(found)),
            *_sizes(found),
            *([] if found.target is None else _target(found.target)),
            *_choices(found),
            "<h2>Layers, largest errors first</h2>",
            *_layer_table(found),
            "<h2>What each layer sees, and the range chosen</h2>",
            '<div class="layers">',
            *(line for index, layer in enumerate(found.layers) for line in _figure(index, layer)),
            "</div>",
            "<h2>What stayed float, and why</h2>",
            *_floats(found.floats),
            *_folded(found),
            "<h2>What the words mean</h2><dl>",
            *(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in _LEGEND),
            "</dl>",
            '<section id="times"><h2>Times</h2>',
            *table(("step", "seconds"), ((name, f"{value:.2f}") for name, value in found.seconds.items())),
            "</section>",
        ],
        _STYLE,
    )


def _output_rows(found: QuantizationReport) -> Iterator[tuple[str, ...]]:
    for output, error in found.outputs.items():
        yield output, *_figures(error)


def _figures(error: TensorError) -> tuple[str, str, str]:
    return decibels(error.sqnr), f"{error.cosine:.6f}", f"{error.largest:.4g}"


def _sizes(found: QuantizationReport) -> Iterator[str]:
    yield "<h2>Sizes</h2>"
    whole = next(iter(found.sizes.values()), 0) or 1
    rows = ((name, f"{size:,}", f"{100 * size / whole:.1f} %") for name, size in found.sizes.items())
    yield from table(("model", "bytes", "of the float model"), rows)


def _target(search: TargetSearch) -> Iterator[str]:
    yield "<h2>How the target was reached</h2>"
    yield f"<p>Target: {escape(search.target)}, measured on {escape(search.measured_on)}.</p>"
    rows = (
        (
            f"{number}{' (chosen)' if step is search.chosen else ''}",
            str(len(step.float_layers)),
            str(len(step.int16_layers)),
            step.shown,
            "yes" if step.reached else "no",
        )
        for number, step in enumerate(search.steps, 1)
    )
    yield from table(("step", "float layers", "16-bit activations", "measured", "reached"), rows)


def _choices(found: QuantizationReport) -> Iterator[str]:
    if found.choices:
        yield "<h2>What was tried for the whole network</h2>"
        yield f"<ul>{''.join(f'<li>{escape(choice)}</li>' for choice in found.choices)}</ul>"


def _layer_table(found: QuantizationReport) -> Iterator[str]:
    heads = ("layer", "operator", "SQNR (dB)", "cosine", "largest difference", "input", "weight")
    yield '<div class="scroll"><table><tr>'
    yield "".join(f"<th{' class=name' if head == 'layer' else ''}>{head}</th>" for head in heads) + "</tr>"
    for index, layer in enumerate(found.layers):
        error = layer.error
        figures = (
            ("", "", "") if error is None else (decibels(error.sqnr), f"{error.cosine:.6f}", f"{error.largest:.4g}")
        )
        cells = (layer.op_type, *figures, layer.activation, layer.weight)
        yield f'<tr><td class="name"><a href="#layer-{index}">{escape(layer.name)}</a></td>'
        yield "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _figure(index: int, layer: LayerReport) -> Iterator[str]:
    error = ""
    if layer.error is not None:
        poor = ' class="poor"' if not layer.error.sqnr >= _POOR else ""
        error = f", <span{poor}>{decibels(layer.error.sqnr)} dB</span>"
    yield f'<figure id="layer-{index}"><figcaption><b>{escape(layer.name)}</b> {escape(layer.op_type)}{error}'
    said = ", ".join(part for part in (layer.activation, layer.weight) if part)
    yield f'<br><span class="dim">{escape(said)}</span>'
    yield "".join(f"<br>{escape(note)}" for note in layer.notes) + "</figcaption>"
    names = ("input", "hidden state" if layer.op_type in ("LSTM", "GRU") else "second input")
    for name, place in zip(names, layer.inputs, strict=False):  # one that stands alone needs no name
        yield f'<div class="dim">{name}</div>' if len(layer.inputs) > 1 else ""
        yield from _picture(place)
    yield "</figure>"


def _picture(place: InputRange) -> Iterator[str]:
    """The bars, the chosen range over them and one line for each of those considered; what hovers says the numbers."""
    seen, chosen = place.distribution, RangeCandidate(name="chosen", low=place.low, high=place.high)
    ranges = [chosen, *place.considered]
    ends = [end for each in ranges for end in (each.low, each.high)]
    ends += [] if seen is None else [seen.low, seen.high]
    scale = _Scale(min(ends), max(ends))
    height, base = _BARS_HEIGHT + _ROW * len(ranges) + 18, _BARS_HEIGHT
    said = escape(
        f"{place.key}: from {place.low:.6g} to {place.high:.6g}, scale {place.scale:.6g}, offset {place.offset}"
    )
    yield f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{said}"><title>{said}</title>'
    left, right = scale.place(place.low), scale.place(place.high)
    yield f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{base}" fill="{_CHOSEN}" opacity=".12"/>'
    if seen is not None:
        yield f'<path d="{_bars(seen, scale)}" fill="{_BARS}"/>'
    for x in (left, right):
        yield f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{base}" stroke="{_CHOSEN}"/>'
    yield f'<line x1="0" y1="{base}" x2="{_WIDTH}" y2="{base}" stroke="#666"/>'
    for number, each in enumerate(ranges):
        colour = _OTHERS[(number - 1) % len(_OTHERS)] if number else _CHOSEN
        yield from _row(base + _ROW * (number + 1), scale, each, colour)
    yield f'<text x="0" y="{height - 3}">{scale.low:.4g}</text>'
    yield f'<text x="{_WIDTH}" y="{height - 3}" text-anchor="end">{scale.high:.4g}</text>'
    if 60 < scale.place(0.0) < _WIDTH - 60:
        yield f'<text x="{scale.place(0.0):.1f}" y="{height - 3}" text-anchor="middle">0</text>'
    yield "</svg>"


def _row(y: float, scale: _Scale, shown: RangeCandidate, colour: str) -> Iterator[str]:
    """A line from end to end of a range, with its name on it."""
    cost = "" if shown.loss is None else f", loss {shown.loss:.4g}"
    said = escape(f"{shown.name}: from {shown.low:.6g} to {shown.high:.6g}{cost}")
    x, end = scale.place(shown.low), scale.place(shown.high)
    middle = min(max((x + end) / 2, 60.0), _WIDTH - 60.0)
    yield (
        f'<line x1="{x:.1f}" y1="{y}" x2="{end:.1f}" y2="{y}" stroke="{colour}" stroke-width="2">'
        f"<title>{said}</title></line>"
    )
    half = 3.9 * len(shown.name)
    yield f'<rect x="{middle - half:.1f}" y="{y - 5}" width="{2 * half:.1f}" height="10" fill="#fff"/>'
    yield f'<text x="{middle:.1f}" y="{y + 4}" text-anchor="middle" fill="{colour}">{escape(shown.name)}</text>'


class _Scale:
    """Values to places from left to right."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Where a value stands; in the middle where all values are the same."""
        span = self.high - self.low
        share = (value - self.low) / span if 0 < span < math.inf else 0.5
        return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _bars(seen: Distribution, scale: _Scale) -> str:
    """A path of all bars that are not empty; heights are logarithms of the counts."""
    highest = math.log1p(int(seen.counts.max()))
    width = (seen.high - seen.low) / seen.counts.size
    parts = []
    for number, count in enumerate(seen.counts.tolist()):
        if count:
            x, end = scale.place(seen.low + number * width), scale.place(seen.low + (number + 1) * width)
            height = math.log1p(count) / highest * (_BARS_HEIGHT - 6)
            parts.append(f"M{x:.1f} {_BARS_HEIGHT}v{-height:.1f}h{max(end - x - 0.4, 1.0):.1f}v{height:.1f}z")
    return "".join(parts)


def _floats(nodes: tuple[FloatNode, ...]) -> Iterator[str]:
    """Those that could have been quantized one by one, the others counted by their reason."""
    if not nodes:
        yield "<p>Nothing.</p>"
    if could := [node for node in nodes if node.could]:
        yield '<div class="scroll"><table>'
        yield '<tr><th class="name">node</th><th>operator</th><th class="why">reason</th></tr>'
        for node in could:
            yield f'<tr><td class="name">{escape(node.name)}</td><td>{escape(node.op_type)}</td>'
            yield f'<td class="why">{escape(node.reason)}</td></tr>'
        yield "</table></div>"
    others: dict[str, list[str]] = {}
    for node in nodes:
        if not node.could:
            others.setdefault(node.reason, []).append(node.name)
    for reason, names in sorted(others.items(), key=lambda entry: -len(entry[1])):
        yield f"<details><summary>{counted(len(names), 'node')}: {escape(reason)}</summary><ul>"
        yield "".join(f"<li>{escape(name)}</li>" for name in names) + "</ul></details>"


def _folded(found: QuantizationReport) -> Iterator[str]:
    if found.folded:
        said = f"{counted(len(found.folded), 'node')} folded into another one, which computes what they did"
        yield f"<details><summary>{said}</summary><ul>"
        yield "".join(f"<li>{escape(name)} into {escape(into)}</li>" for name, into in found.folded.items())
        yield "</ul></details>"
