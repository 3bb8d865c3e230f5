"""ARQ: symmetric weights from the largest magnitude of each channel, or of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.kernels.checks import require_bool, require_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Arq:
    """Parameters of ARQ.

    channel_wise: one scale per output channel; None leaves it to the layer's type.
    num_bits: width of the weights.
    """

    channel_wise: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        require_bool("channel_wise", self.channel_wise, optional=True)
        require_choice("num_bits of the weights", self.num_bits, (4, 6, 7, 8))
