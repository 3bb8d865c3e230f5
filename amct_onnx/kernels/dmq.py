"""DMQ: outliers moved from activations to weights. Its parameters are checked; the algorithm is not there yet."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.kernels.checks import require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Dmq:
    """Parameters of the DMQ balancer.

    migration_strength: how much of the difficulty moves to the weights.
    """

    migration_strength: float = 0.5

    def __post_init__(self) -> None:
        require_number("migration_strength", self.migration_strength, interval="[0.2, 0.8]")
