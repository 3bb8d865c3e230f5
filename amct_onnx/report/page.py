"""What pages of HTML are made of: they need no network and no script, and every name in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } th, td { padding: 3px 9px; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } .name { text-align: left; min-width: 7em;
max-width: 22em; overflow-wrap: anywhere } .scroll { overflow-x: auto }
svg { width: 100%; height: auto } svg text { font-size: 12px }
dt { font-weight: 600 } h2 { margin-top: 2em }
"""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of texts, whose first column is the name."""
    yield '<div class="scroll"><table><tr>'
    yield "".join(f"<th{_kind(i)}>{escape(head)}</th>" for i, head in enumerate(heads)) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{_kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
    yield "</table></div>"


def _kind(column: int) -> str:
    return ' class="name"' if column == 0 else ""


def decibels(value: float) -> str:
    """A number of dB as tables show it."""
    return "equal" if value == math.inf else "?" if math.isnan(value) else f"{value:.1f}"


def counted(number: int, noun: str) -> str:
    """A number of things: 1 batch, 2 batches."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def share(value: float) -> str:
    """A share as tables show it."""
    return "0" if value == 0 else f"{100 * value:.3g} %"


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """The page as text. style: rules of its own, beside those of all pages."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}{style}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )
