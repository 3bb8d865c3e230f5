"""A model whose scales are known, before it is rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amct_onnx.config import QuantConfig
from amct_onnx.data import Feeds
from amct_onnx.formats.amct_json import format_json
from amct_onnx.passes.graph import Array
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.results import json_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A model whose scales are known and which is not rewritten yet.

    state: the prepared float graph, the final plan and its scales.
    config: what was asked for.
    feeds: the calibration batches.
    batch_num: how many of them were used.
    expected: what the model makes of the first one.
    """

    state: QuantState
    config: QuantConfig
    feeds: Feeds
    batch_num: int
    expected: Mapping[str, Array]

    def text(self, plan: QuantPlan | None = None) -> str:
        """The configuration as AMCT's JSON, of another plan than the own where one is given."""
        return format_json(self.config, json_layers(plan or self.state.plan), batch_num=self.batch_num)
