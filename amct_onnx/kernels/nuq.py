"""NUQ: weights on a few of the 256 steps. The parameters are read and checked; the algorithm is not available yet."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.kernels.checks import require_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuq:
    """Parameters of NUQ.

    num_steps: how many distinct integers remain.
    num_of_iteration: rounds of the search.
    """

    num_steps: int = 32
    num_of_iteration: int = 1

    def __post_init__(self) -> None:
        require_choice("num_steps", self.num_steps, (16, 32))
        require_choice("num_of_iteration", self.num_of_iteration, (0, 1, 2, 3, 4, 5))
