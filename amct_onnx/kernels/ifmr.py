"""IFMR: the activation range whose quantization loses the least, searched around a percentile."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from amct_onnx.errors import ConfigError
from amct_onnx.kernels.checks import require_bool, require_choice, require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Ifmr:
    """Parameters of IFMR.

    search_range: first and last ratio of the percentile that are tried.
    search_step: distance of the ratios.
    max_percentile, min_percentile: share of the values that the start of the search covers.
    asymmetric: with an offset; None leaves it to the common block or to `activation_offset`.
    num_bits: width of the activations.
    """

    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        start, end = self.search_range
        require_number("search_range start", start, interval="(0, inf)")
        require_number("search_range end", end, interval="(0, inf)")
        if not start < end:
            raise ConfigError(f"search_range must start below its end, found [{start}, {end}]")
        require_number("search_step", self.search_step, interval="(0, inf)")
        if Decimal(str(self.search_step)) > Decimal(str(end)) - Decimal(str(start)):
            raise ConfigError(f"search_step must not exceed the range [{start}, {end}], found {self.search_step}")
        require_number("max_percentile", self.max_percentile, interval="(0.5, 1]")
        require_number("min_percentile", self.min_percentile, interval="(0.5, 1]")
        require_bool("asymmetric", self.asymmetric, optional=True)
        require_choice("num_bits of the activations", self.num_bits, (4, 8, 16))
