"""AdaRound: weights rounded up or down so that the layer's outputs stay closest to the float ones.

Rounding is made soft: a weight lies between its lower and its upper integer, where h(alpha) says, a stretched and
clipped sigmoid. Adam moves alpha along the gradient of the squared error of the outputs, plus a regulariser that
drives h to 0 or 1. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020; the parameters,
the start and the schedule are AMCT's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amct_onnx.errors import ConfigError
from amct_onnx.kernels.activations import Activation
from amct_onnx.kernels.checks import require_bool, require_choice, require_int, require_number
from amct_onnx.kernels.compiled import compiled

Array = NDArray[np.float32]

_STEP = 1e-3
"""AMCT's step of Adam, however many there are."""

_WAY = 10.0
"""Fewer steps are longer, so that alpha can go as far: 300 of AMCT's would move it by 0.3 only."""

_FEWEST_ROWS, _MOST_ROWS, _ROWS_OF_AMCT = 64, 256, 1024
"""Rows that a step looks at where it goes through them; few weights need few. AMCT takes all of a batch."""

_CHANNELS, _WEIGHTS = 64, 1 << 13
"""Output channels, or weights of small groups, that are optimised at a time, on one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaRound:
    """Parameters of AdaRound.

    num_iteration: optimisation steps per layer.
    reg_param: weight of the rounding regulariser.
    beta_range: first and last exponent of the regulariser.
    warm_start: share of the steps without regulariser.
    channel_wise: one scale per output channel; None leaves it to the layer's type.
    num_bits: width of the weights.
    amct_scales: find all scales as AMCT does: those of weights by a search that cuts off large ones, those of
        activations behind weights that are rounded softly. Off: ARQ's scales, and activations behind weights rounded
        to nearest; that is nearer to the float model, and quicker. No file of AMCT's turns it off.
    """

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2
    channel_wise: bool | None = None
    num_bits: int = 8
    amct_scales: bool = True

    def __post_init__(self) -> None:
        require_int("num_iteration", self.num_iteration, low=0)
        require_number("reg_param", self.reg_param, interval="(0, 1)")
        start, end = self.beta_range
        require_number("beta_range start", start, interval="(0, inf)")
        require_number("beta_range end", end, interval="(0, inf)")
        if not start > end:
            raise ConfigError(f"beta_range must start above its end, found [{start}, {end}]")
        require_number("warm_start", self.warm_start, interval="(0, 1)")
        require_bool("channel_wise", self.channel_wise, optional=True)
        require_choice("num_bits of the weights", self.num_bits, (4, 6, 7, 8))
        require_bool("amct_scales", self.amct_scales)

    def beta(self, iteration: int) -> float | None:
        """The exponent of the regulariser at a step; None where there is no regulariser yet."""
        warm = self.warm_start * self.num_iteration
        if iteration < warm:
            return None
        start, end = self.beta_range
        done = (iteration - warm) / (self.num_iteration - warm)
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))

    @property
    def step(self) -> float:
        """How far Adam goes at a time."""
        return max(_STEP, _WAY / max(self.num_iteration, 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A layer as products of matrices, one for each group, and what is known of its inputs and outputs.

    All float32. G groups of M output channels, with K weights each; R rows, the sampled positions.

    weight: [G, M, K].
    scale: [G, M, 1].
    rows: inputs as the quantized layer gets them, [G, R, K].
    base: what the float weights make of `rows`, with bias, less the float model's output, [G, R, M].
    target: the float model's output, in front of the activation function, [G, R, M].
    activation: the function behind the layer; None where there is none.
    limits: smallest and largest integer.
    """

    weight: Array
    scale: Array
    rows: Array
    base: Array
    target: Array
    activation: Activation | None
    limits: tuple[int, int]

    def cut(self, rows: slice) -> Layer:
        """With some of the rows only, the same memory."""
        return self._replaced(slice(None), slice(None), rows)

    def part(self, groups: slice, channels: slice) -> Layer:
        """Some of the groups and channels."""
        return self._replaced(groups, channels, slice(None))

    def _replaced(self, groups: slice, channels: slice, rows: slice) -> Layer:
        return Layer(
            weight=self.weight[groups, channels],
            scale=self.scale[groups, channels],
            rows=self.rows[groups, rows],
            base=self.base[groups, rows, channels],
            target=self.target[groups, rows, channels],
            activation=None if self.activation is None else self.activation.part(groups, channels),
            limits=self.limits,
        )

    def error(self, integers: Array) -> float:
        """Mean over the rows of the squared errors of all outputs, with these integers [G, M, K] as weights."""
        delta = np.ascontiguousarray(integers * self.scale - self.weight)
        y = self.base + np.matmul(self.rows, delta.transpose(0, 2, 1))
        if self.activation is not None:
            y = self.activation.value(y + self.target) - self.activation.value(self.target)
        return float(np.square(y, dtype=np.float64).sum() / max(y.shape[1], 1))


def nearest(layer: Layer) -> Array:
    """The weights rounded to the nearest integers, [G, M, K]; halves to even."""
    low, high = map(np.float32, layer.limits)
    return np.asarray(np.clip(np.rint(layer.weight / layer.scale), low, high), np.float32)


def learn_rounding(layer: Layer, parameters: AdaRound, *, threads: int) -> Array:
    """The integers of a layer's weights, [G, M, K], each one of the two that its weight lies between.

    Raises:
        FloatingPointError: the optimisation leaves the finite numbers.
    """
    if parameters.num_iteration == 0:
        return nearest(layer)
    rows = min(max(4 * layer.weight.shape[2], _FEWEST_ROWS), _MOST_ROWS)
    soft = _learn(layer, parameters, step=parameters.step, most_rows=rows, threads=threads)
    return np.asarray(np.clip(_lower(layer) + (soft > 0.5), *layer.limits), np.float32)


def soft_weights(layer: Layer, parameters: AdaRound, *, threads: int) -> Array:
    """The weights as AMCT leaves them, [G, M, K]: by steps of its own length, and between two integers still.

    Raises:
        FloatingPointError: the optimisation leaves the finite numbers.
    """
    soft = _learn(layer, parameters, step=_STEP, most_rows=_ROWS_OF_AMCT, threads=threads)
    return np.asarray(np.clip(_lower(layer) + soft, *layer.limits) * layer.scale, np.float32)


def _lower(layer: Layer) -> Array:
    return np.asarray(np.floor(layer.weight / layer.scale), np.float32)


def _learn(layer: Layer, parameters: AdaRound, *, step: float, most_rows: int, threads: int) -> Array:
    """How far each weight goes from its lower integer to the upper one, [G, M, K], in [0, 1].

    Blocks of output channels are independent, since each channel has an error of its own: they are optimised side by
    side, each on one thread of the linear algebra, so that the result does not depend on the number of threads.
    """
    groups, channels, size = layer.weight.shape
    deep = min(groups, max(1, _WEIGHTS // (channels * size))) if groups > 1 else 1
    wide = channels if groups > 1 else min(channels, _CHANNELS)
    blocks = [
        (slice(g, g + deep), slice(c, c + wide)) for g in range(0, groups, deep) for c in range(0, channels, wide)
    ]
    soft = np.empty_like(layer.weight)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        by_gram = layer.activation is None and size <= 2 * min(most_rows, layer.rows.shape[1])
        grams = _grams(layer) if by_gram else None

        def optimise(block: tuple[slice, slice]) -> None:
            part = layer.part(*block)
            gradient = _by_rows(part, most_rows) if grams is None else _by_gram(part, grams[block[0]])
            soft[block] = _optimise(part, parameters, gradient, np.float32(step))

        for done in [pool.submit(optimise, block) for block in blocks]:
            done.result()
    return soft


def _grams(layer: Layer) -> Array:
    """X^T X / R of each group, [G, K, K]: all that the quadratic error needs to know of the rows."""
    return np.asarray(
        np.matmul(layer.rows.transpose(0, 2, 1), layer.rows) / np.float32(layer.rows.shape[1]), np.float32
    )


def _by_gram(layer: Layer, grams: Array) -> Callable[[Array, int], Array]:
    """From Gram matrices: without an activation function the error is a quadratic form, whatever the rows."""
    offset = np.matmul(layer.base.transpose(0, 2, 1), layer.rows) / np.float32(layer.rows.shape[1])

    def gradient(delta: Array, iteration: int) -> Array:
        found: Array = np.matmul(delta, grams)
        found += offset
        found *= np.float32(2)
        return found

    return gradient


def _by_rows(layer: Layer, most_rows: int) -> Callable[[Array, int], Array]:
    """From `most_rows` rows at a time, in their order, which is random, over and over."""
    activation = layer.activation
    wanted = None if activation is None else activation.value(layer.target)
    start = layer.base if activation is None else layer.base + layer.target
    count = max(1, math.ceil(layer.rows.shape[1] / most_rows))
    edges = [layer.rows.shape[1] * i // count for i in range(count + 1)]

    def gradient(delta: Array, iteration: int) -> Array:
        some = slice(edges[iteration % count], edges[iteration % count + 1])
        rows = layer.rows[:, some]
        error = np.matmul(rows, delta.transpose(0, 2, 1))
        error += start[:, some]
        if activation is not None and wanted is not None:
            slope = activation.slope(error)
            error = activation.value(error)
            error -= wanted[:, some]
            error *= slope
        error *= np.float32(2 / max(rows.shape[1], 1))
        return np.asarray(np.matmul(error.transpose(0, 2, 1), rows), np.float32)

    return gradient


def _optimise(layer: Layer, parameters: AdaRound, gradient: Callable[[Array, int], Array], step: np.float32) -> Array:
    """Adam over one block: how far each weight goes, in [0, 1]."""
    shape = layer.weight.shape
    weight = np.ascontiguousarray(layer.weight).reshape(-1, shape[2])
    scale = np.ascontiguousarray(layer.scale).reshape(-1)
    lower = np.floor(weight / scale[:, None])
    alpha = first_alpha(weight / scale[:, None] - lower)
    first, second, decay, soft, delta, power = (np.zeros_like(alpha) for _ in range(6))
    limits = np.float32(layer.limits[0]), np.float32(layer.limits[1])
    for iteration in range(parameters.num_iteration):
        np.exp(np.negative(alpha, out=decay), out=decay)
        _soften(decay, lower, scale, weight, *limits, soft, delta, power)
        slope = gradient(delta.reshape(shape), iteration).reshape(weight.shape)
        beta = parameters.beta(iteration)
        if beta is not None:
            np.log(power, out=power)
            power *= np.float32(beta - 1)
            np.exp(power, out=power)
        pull = np.float32(0 if beta is None else -2 * beta * parameters.reg_param)
        corrections = np.float32(1 / (1 - 0.9 ** (iteration + 1))), np.float32(1 / (1 - 0.999 ** (iteration + 1)))
        _adam(
            alpha, first, second, soft, lower, scale, *limits, slope, power, pull,
            step, *corrections,
        )  # fmt: skip
    if not np.isfinite(alpha).all():
        raise FloatingPointError("the optimisation of the rounding leaves the finite numbers")
    return np.asarray(np.clip(1.2 / (1 + np.exp(-alpha)) - 0.1, 0, 1).reshape(shape), np.float32)


def first_alpha(share: Array) -> Array:
    """The alpha at which h is `share`, how far a weight lies from its lower integer to the upper one, in [0, 1)."""
    return np.asarray(-np.log(np.float32(1.2) / (share + np.float32(0.1)) - np.float32(1)), np.float32)


@compiled
def _soften(
    decay: Array,
    lower: Array,
    scale: Array,
    weight: Array,
    low: np.float32,
    high: np.float32,
    soft: Array,
    delta: Array,
    power: Array,
) -> None:
    """From decay = exp(-alpha): soft = h, delta = what rounding adds to the weights, power = |2 h - 1|."""
    for r in range(decay.shape[0]):  # in short loops, which become vector instructions
        for k in range(decay.shape[1]):
            h = np.float32(1.2) / (np.float32(1) + decay[r, k]) - np.float32(0.1)
            soft[r, k] = min(max(h, np.float32(0)), np.float32(1))
        for k in range(decay.shape[1]):
            delta[r, k] = min(max(lower[r, k] + soft[r, k], low), high) * scale[r] - weight[r, k]
        for k in range(decay.shape[1]):
            power[r, k] = max(abs(soft[r, k] + soft[r, k] - np.float32(1)), np.float32(1e-6))  # for its logarithm


@compiled
def _adam(
    alpha: Array,
    first: Array,
    second: Array,
    soft: Array,
    lower: Array,
    scale: Array,
    low: np.float32,
    high: np.float32,
    slope: Array,
    power: Array,
    pull: np.float32,
    step: np.float32,
    correct_first: np.float32,
    correct_second: np.float32,
) -> None:
    """One step of Adam. `slope`: gradient by the weights; `power`: |2 h - 1|^(beta - 1); `pull`: -2 beta reg_param."""
    for r in range(alpha.shape[0]):  # in short loops, which become vector instructions
        for k in range(alpha.shape[1]):
            h = soft[r, k]
            level = lower[r, k] + h
            by_h = slope[r, k] * scale[r] if (level >= low) & (level <= high) else np.float32(0)
            by_h += pull * power[r, k] * (np.float32(1) if h > np.float32(0.5) else np.float32(-1))
            sigmoid = (h + np.float32(0.1)) * np.float32(1 / 1.2)
            by_alpha = by_h * np.float32(1.2) * sigmoid * (np.float32(1) - sigmoid)
            slope[r, k] = by_alpha if (h > np.float32(0)) & (h < np.float32(1)) else np.float32(0)
        for k in range(alpha.shape[1]):
            first[r, k] = np.float32(0.9) * first[r, k] + np.float32(0.1) * slope[r, k]
        for k in range(alpha.shape[1]):
            second[r, k] = np.float32(0.999) * second[r, k] + np.float32(0.001) * slope[r, k] * slope[r, k]
        for k in range(alpha.shape[1]):
            root = np.sqrt(second[r, k] * correct_second) + np.float32(1e-8)
            alpha[r, k] -= step * (first[r, k] * correct_first) / root
