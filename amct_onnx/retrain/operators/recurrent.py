"""LSTM, GRU and RNN, step by step; gates in the order and with the equations of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator

_Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Input of one moment, already multiplied by W, and the state -> the new state, hidden part first."""

_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Direction:
    """The weights of one direction: input [gates * H, I], recurrent [gates * H, H], biases [2, gates * H]."""

    w: Tensor
    r: Tensor
    biases: Tensor
    peepholes: Tensor | None


def _lstm(direction: _Direction, call: Call) -> _Step:
    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, o, f, g = (x + h @ direction.r.t() + direction.biases[1]).chunk(4, 1)
        if direction.peepholes is not None:
            p_i, p_o, p_f = direction.peepholes.chunk(3)
            i, f = i + p_i * c, f + p_f * c
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        o = o if direction.peepholes is None else o + p_o * c
        return o.sigmoid() * c.tanh(), c

    return step


def _gru(direction: _Direction, call: Call) -> _Step:
    after = bool(call.get("linear_before_reset", 0))

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        size = h.shape[1]
        gates, hidden = x[:, : 2 * size], x[:, 2 * size :]
        r_gates, r_hidden = direction.r[: 2 * size], direction.r[2 * size :]
        b_gates, b_hidden = direction.biases[1][: 2 * size], direction.biases[1][2 * size :]
        z, r = (gates + h @ r_gates.t() + b_gates).sigmoid().chunk(2, 1)
        recurrent = r * (h @ r_hidden.t() + b_hidden) if after else (r * h) @ r_hidden.t() + b_hidden
        return ((1 - z) * (hidden + recurrent).tanh() + z * h,)

    return step


def _rnn(direction: _Direction, call: Call) -> _Step:
    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((x + state[0] @ direction.r.t() + direction.biases[1]).tanh(),)

    return step


def _recurrent(op: str, make_step: Callable[[_Direction, Call], _Step], states: int) -> Operator:
    def operator(
        call: Call,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        biases: Tensor | None = None,
        lengths: Tensor | None = None,
        initial_h: Tensor | None = None,
        initial_c: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        _refuse(op, call, x, lengths, len(w))
        outputs, finals = [], []
        for number in range(len(w)):
            backward = number == 1 or call.get("direction", "forward") == "reverse"
            direction = _Direction(
                w=w[number],
                r=r[number],
                biases=x.new_zeros(2, w.shape[1]) if biases is None else biases[number].reshape(2, -1),
                peepholes=None if peepholes is None else peepholes[number],
            )
            zero = x.new_zeros(x.shape[1], r.shape[2])
            state = tuple(zero if s is None else s[number] for s in (initial_h, initial_c)[:states])
            moments = (x.flip(0) if backward else x) @ direction.w.t() + direction.biases[0]
            hidden = []
            step = make_step(direction, call)
            for moment in moments:
                state = step(moment, state)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if backward else hidden))
            finals.append(state)
        return (torch.stack(outputs, 1), *(torch.stack(parts) for parts in zip(*finals, strict=True)))

    return operator


def _refuse(op: str, call: Call, x: Tensor, lengths: Tensor | None, directions: int) -> None:
    if lengths is not None and bool((lengths != x.shape[0]).any()):
        raise NotAvailableError("sequences of different lengths are not available for training")
    call.refuse("layout", 0)
    call.refuse("clip", None)
    call.refuse("input_forget", 0)
    call.refuse("activations", _ACTIVATIONS[op] * directions)


OPERATORS: dict[str, Operator] = {
    "GRU": _recurrent("GRU", _gru, 1),
    "LSTM": _recurrent("LSTM", _lstm, 2),
    "RNN": _recurrent("RNN", _rnn, 1),
}
