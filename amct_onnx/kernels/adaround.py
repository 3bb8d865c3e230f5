"""AdaRound: learned rounding of weights. The parameters are read and checked; the algorithm is not available yet."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.errors import ConfigError
from amct_onnx.kernels.checks import require_bool, require_choice, require_int, require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaRound:
    """Parameters of AdaRound.

    num_iteration: optimisation steps per layer.
    reg_param: weight of the rounding regulariser.
    beta_range: first and last exponent of the regulariser.
    warm_start: share of the steps without regulariser.
    channel_wise: one scale per output channel; None leaves it to the layer's type.
    num_bits: width of the weights.
    """

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2
    channel_wise: bool | None = None
    num_bits: int = 8

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
