"""HFMG: the activation range found by shrinking a histogram from both ends."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.kernels.checks import require_bool, require_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Hfmg:
    """Parameters of HFMG.

    num_of_bins: resolution of the histogram.
    asymmetric: with an offset; None leaves it to the common block or to `activation_offset`.
    num_bits: width of the activations.
    """

    num_of_bins: int = 4096
    asymmetric: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        require_choice("num_of_bins", self.num_of_bins, (1024, 2048, 4096, 8192))
        require_bool("asymmetric", self.asymmetric, optional=True)
        require_choice("num_bits of the activations", self.num_bits, (4, 8, 16))
