"""Brings Gemm with constant weights into the one form that Ascend takes: [K, N] weights, alpha = beta = 1, bias [N].

alpha * A * B^T + beta * C  ->  A * (alpha * B)^T + (beta * C)
"""

from __future__ import annotations

import numpy as np

from amct_onnx.passes.graph import Array, Node, constant_input, has_input, nodes_of, set_input, unique_name
from amct_onnx.passes.invariants import NAMED, PLAIN_GEMM
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    names = state.graph.tensor_names()
    for gemm in nodes_of(state.graph, "Gemm"):
        weight = constant_input(gemm, 1)
        if weight is None or weight.dtype not in (np.float32, np.float16):
            continue
        bias = constant_input(gemm, 2)
        beta_stays = has_input(gemm, 2) and bias is None  # a run-time bias cannot take it in
        plain_weight = _plain_weight(gemm, weight)
        if np.isfinite(weight).all() and not np.isfinite(plain_weight).all():
            continue  # float16 does not hold alpha times the weight
        if plain_weight is not weight:
            _replace(state, gemm, 1, plain_weight, names)
        if bias is not None:
            plain = _plain_bias(gemm, bias, gemm.inputs[1].shape[1])
            if plain is not bias:
                _replace(state, gemm, 2, plain, names)
        gemm.attrs.update(transB=0, alpha=1.0)
        gemm.attrs["beta"] = float(gemm.attrs.get("beta", 1.0)) if beta_stays else 1.0


def _replace(state: QuantState, gemm: Node, index: int, values: Array, names: set[str]) -> None:
    """Give this node its own initializer: others may read the old one as it is. The name stays where it can."""
    old = gemm.inputs[index]
    if len(old.outputs) > 1 or state.graph.is_output(old):
        set_input(gemm, index, state.graph.new_constant(unique_name(f"{old.name}.{gemm.name}", names), values))
    else:
        set_input(gemm, index, state.graph.new_constant(old.name, values))


def _plain_weight(gemm: Node, weight: Array) -> Array:
    """The weight as [K, N] with alpha multiplied in; itself where nothing is to do."""
    if gemm.attrs.get("transB", 0):
        weight = weight.T
    alpha = float(gemm.attrs.get("alpha", 1.0))
    with np.errstate(over="ignore", invalid="ignore"):
        return weight if alpha == 1.0 else (weight * weight.dtype.type(alpha)).astype(weight.dtype)


def _plain_bias(gemm: Node, bias: Array, channels: int) -> Array:
    """The bias as [N] where it is the same for every row, with beta multiplied in; itself where nothing is to do."""
    beta = float(gemm.attrs.get("beta", 1.0))
    if beta == 0.0:
        bias = np.zeros_like(bias)  # whatever it holds, NaN too, does not count
    elif beta != 1.0:
        bias = (bias * bias.dtype.type(beta)).astype(bias.dtype)
    one_row = bias.ndim == 0 or (bias.ndim <= 2 and bias.size == bias.shape[-1])
    if one_row and bias.shape != (channels,):
        bias = np.broadcast_to(bias.reshape(-1), (channels,)).copy()
    return bias


NORMALISE_GEMM = Pass(name="normalise Gemm", run=_run, requires=(NAMED,), ensures=(PLAIN_GEMM,))
