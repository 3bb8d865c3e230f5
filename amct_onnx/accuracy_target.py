"""The accuracy that a quantized model must keep, and the account of how it was reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from amct_onnx.errors import ConfigError
from amct_onnx.kernels.checks import require_bool, require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTarget:
    """What the fake-quant model must keep of the float one; exactly one of `sqnr`, `cosine` and `metric` is given.

    sqnr: least SQNR in dB, 10 * log10(sum(x^2) / sum((x - y)^2)), of every output of floats.
    cosine: least cosine of the angle between every output of floats and its float twin.
    metric: the user's own: takes the path of an .onnx file and gives a number, the larger the better. It is called with
        the float model, then with fake-quant models, any number of times; the file is gone afterwards.
    drop: by how much `metric` may be below that of the float model, in its own unit.
    int16: activations of 16 bits before float layers, for chips that take them.

    Raises:
        ConfigError: none or several of the three, or a value that is not allowed.
    """

    sqnr: float | None = None
    cosine: float | None = None
    metric: Callable[[str], float] | None = None
    drop: float | None = None
    int16: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("sqnr", "cosine", "metric") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ConfigError(f"a target is one of sqnr, cosine and metric, found {found}")
        if self.sqnr is not None:
            require_number("sqnr of the target", self.sqnr, interval="(0, inf)")
        if self.cosine is not None:
            require_number("cosine of the target", self.cosine, interval="(0, 1)")
        if self.metric is not None and not callable(self.metric):
            raise ConfigError(f"metric of the target must be a function, found {self.metric!r:.80}")
        if (self.metric is None) != (self.drop is None):
            raise ConfigError("metric and drop of a target go together: the function, and how much less it may give")
        if self.drop is not None:
            require_number("drop of the target", self.drop, interval="[0, inf)")
        require_bool("int16 of the target", self.int16)

    @classmethod
    def parse(cls, text: str, *, int16: bool = False) -> AccuracyTarget:
        """From "sqnr:30" or "cosine:0.99".

        Raises:
            ConfigError: it is neither.
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind == "sqnr" and not math.isnan(value):
            return cls(sqnr=value, int16=int16)
        if kind == "cosine" and not math.isnan(value):
            return cls(cosine=value, int16=int16)
        raise ConfigError(f"a target is written sqnr:30 (in dB) or cosine:0.99, found {text!r}")

    def limit(self, original: float) -> float:
        """The least value that will do. original: the metric of the float model, where it is about one."""
        if self.sqnr is not None:
            return self.sqnr
        return self.cosine if self.cosine is not None else original - (self.drop or 0.0)

    def shown(self, value: float) -> str:
        """A value as messages show it."""
        if self.sqnr is not None:
            return f"{value:.2f} dB"
        return f"{value:.6f}" if self.cosine is not None else f"{value:.6g}"

    def describe(self, original: float) -> str:
        """In words. original: as of `limit`."""
        if self.metric is not None:
            return f"a metric of at least {self.limit(original):.6g} (float: {original:.6g})"
        kind, limit = ("SQNR", f"{self.sqnr:.10g} dB") if self.sqnr is not None else ("cosine", f"{self.cosine:.10g}")
        return f"{kind} of at least {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStep:
    """One set of decisions that was measured.

    float_layers, int16_layers: layers that stay float, and those with activations of 16 bits; in the model's order.
    value: the metric, or the SQNR or cosine of the worst output; -inf or NaN where an output is not finite.
    shown: the same as messages show it.
    reached: whether it will do.
    """

    float_layers: tuple[str, ...]
    int16_layers: tuple[str, ...]
    value: float
    shown: str
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSearch:
    """How a target was reached.

    target: in words.
    measured_on: the data, in words.
    steps: all that was measured, in this order; the first is the model with every layer quantized.
    chosen: the one that the result was made of.
    """

    target: str
    measured_on: str
    steps: tuple[TargetStep, ...]
    chosen: TargetStep
