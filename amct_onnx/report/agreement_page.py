"""The agreement of models as one page of HTML that needs nothing else: a picture, tables and a legend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from amct_onnx.deploy.profiles import PROFILES
from amct_onnx.report.agreement import FAKE_QUANT, Agreement, LayerAgreement, OnChip
from amct_onnx.report.compare import TensorError
from amct_onnx.report.page import decibels, document, share, table

_COLOURS = ("#666666", "#1b6ca8", "#c2410c", "#15803d", "#7e22ce")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 1000, 320, 46, 12, 24
_HIGHEST = 80.0  # dB; beyond it the difference is that of float32

_LEGEND = (
    ("SQNR", "how loud the signal is against the difference, in dB: 20 is a difference of a tenth, 40 of a hundredth."),
    ("inputs apart", "share of the integers that a layer reads that are not those of the fake-quant model."),
    ("alone", "SQNR of a layer that is fed with the fake-quant model's inputs: what is its own. First batch only."),
    ("inherited", "most of the difference comes from the layers before; look there."),
    (
        "ties",
        "inputs halfway between two integers: the fake-quant model rounds, then adds the offset; chips add first.",
    ),
    ("float32 rounding", "sums are exact here, those of the fake-quant model are rounded on the way. Harmless."),
    ("truncated scale", "the chip keeps 19 bits of the scale behind a layer, and gives slightly smaller results."),
    ("half scale", "the chip keeps the scale in float16."),
    ("float16 quantization", "AscendQuant computes in float16, which has no more than 11 bits for the scaled value."),
    ("float16 results", "what leaves a layer is rounded to float16."),
    ("clipped", "share of inputs beyond the range of the scale that calibration chose. Few are meant to be."),
    ("saturated", "share of results at float16's largest number, 65504. Should be 0."),
)


def agreement_page(found: Agreement) -> str:
    """The page as text."""
    return document(
        "Agreement of models",
        [
            "<h1>Float, fake-quant and deploy model</h1>",
            f"<p>{found.batches} batches, {len(found.layers)} layers.{_skipped(found)}</p>",
            *_partings(found),
            "<h2>Outputs against the float model</h2>",
            *table(("output", "model", "SQNR (dB)", "cosine", "largest difference"), _output_rows(found)),
            "<h2>Layers against the float model</h2>",
            *_picture(found),
            "<h2>Layers on each chip</h2>",
            *(line for profile in found.profiles for line in _chip(found, profile)),
            "<h2>What the words mean</h2><dl>",
            *(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in _LEGEND),
            "</dl>",
        ],
    )


def _skipped(found: Agreement) -> str:
    if not found.skipped:
        return ""
    return f" Not compared, since one of the models lacks them: {escape(', '.join(found.skipped))}."


def _partings(found: Agreement) -> Iterator[str]:
    yield "<ul>"
    for profile in found.profiles:
        layer = found.parting(profile)
        if layer is None:
            said = "gives what the fake-quant model does"
        else:
            chip = layer.chips[profile]
            said = (
                f"leaves the fake-quant model first at <b>{escape(layer.layer)}</b> "
                f"({escape(chip.main_cause)}, {decibels(chip.against_fake_quant.sqnr)} dB)"
            )
        yield f"<li><b>{escape(profile)}</b> {said}</li>"
    yield "</ul>"


def _output_rows(found: Agreement) -> Iterator[Sequence[str]]:
    for output, errors in found.outputs.items():
        for who, error in errors.items():
            yield output, who, decibels(error.sqnr), f"{error.cosine:.6f}", f"{error.largest:.4g}"


def _chip(found: Agreement, profile: str) -> Iterator[str]:
    summary = PROFILES[profile].summary
    yield f"<h3>{escape(profile)}: {escape(summary)}</h3>"
    heads = ("layer", "operator", "fake-quant to float", "chip to float", "chip to fake-quant", "inputs apart")
    rows = ((*_common(layer, layer.chips[profile]), *_causes(layer, layer.chips[profile])) for layer in found.layers)
    more = ("steps", "alone", "main cause", "costs (dB)", "clipped", "saturated")
    yield from table((*heads, *more), iter(rows))


def _common(layer: LayerAgreement, chip: OnChip) -> Sequence[str]:
    errors = (layer.fake_quant, chip.against_float, chip.against_fake_quant)
    sqnrs = tuple(decibels(error.sqnr) for error in errors)
    return layer.layer, layer.op_type, *sqnrs, share(chip.inputs_apart), str(chip.largest_step), decibels(chip.alone)


def _causes(layer: LayerAgreement, chip: OnChip) -> Sequence[str]:
    costs = ", ".join(f"{cause} {decibels(cost)}" for cause, cost in chip.costs.items())
    return chip.main_cause, costs, share(layer.clipped), share(chip.saturated)


def _picture(found: Agreement) -> Iterator[str]:
    """SQNR against the depth, one line for each model; what hovers says the numbers."""
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="SQNR in dB of every layer">'
    for level in range(0, int(_HIGHEST) + 1, 20):
        y = _height(float(level))
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level} dB</text>'
    for index, (who, errors) in enumerate(_series(found).items()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [(_place(i, len(errors)), _height(error.sqnr)) for i, error in enumerate(errors)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        for (x, y), error, layer in zip(places, errors, found.layers, strict=True):
            title = escape(f"{layer.layer}, {who}: {decibels(error.sqnr)} dB, largest {error.largest:.4g}")
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>'
        yield f'<text x="{_LEFT + 110 * index}" y="{_HEIGHT - 4}" fill="{colour}">&#9632; {escape(who)}</text>'
    yield "</svg>"


def _series(found: Agreement) -> Mapping[str, list[TensorError]]:
    chips = {p: [layer.chips[p].against_float for layer in found.layers] for p in found.profiles}
    return {FAKE_QUANT: [layer.fake_quant for layer in found.layers], **chips}


def _place(index: int, count: int) -> float:
    return _LEFT + 8 + index * (_WIDTH - _LEFT - 16) / max(1, count - 1)


def _height(sqnr: float) -> float:
    level = 0.0 if math.isnan(sqnr) else min(max(sqnr, 0.0), _HIGHEST)
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - level / _HIGHEST)
