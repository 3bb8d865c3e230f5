"""Turns GlobalAveragePool into an AveragePool over the whole plane, which the chip pools as integers.

The plane's size must be known: of an input without fixed height and width it is not, and the node stays.
"""

from __future__ import annotations

from collections.abc import Collection

from amct_onnx.passes.graph import nodes_of
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import Pass, QuantState


def fix_global_pools(names: Collection[str] | None = None) -> Pass:
    """The pass for the nodes of these names, None for all."""

    def run(state: QuantState) -> None:
        pools = [n for n in nodes_of(state.graph, "GlobalAveragePool") if names is None or n.name in names]
        types = infer_types(state.graph) if pools else {}
        for pool in pools:
            known = types.get(pool.inputs[0].name)
            plane = None if known is None or known.shape is None else known.shape[2:]
            if plane is None or len(plane) != 2 or None in plane:
                state.remarks[pool.name] = "height and width of its input are not known; only then could it be fixed"
                continue
            pool.op, pool.attrs = "AveragePool", {"kernel_shape": [int(size or 0) for size in plane]}

    return Pass(name="fix global pools", run=run)
