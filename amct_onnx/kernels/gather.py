"""Picks values out of tensors into rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.compiled import compiled


@compiled
def gather_rows(
    values: NDArray[np.float32],
    sample: NDArray[np.int64],
    offsets: NDArray[np.int64],
    places: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> None:
    """Fill in rows[g, places[i], c * T + t] = values[sample[i], g * C/G + c, offsets[i, t]]; 0 where the offset is < 0.

    Args:
        values: [N, C, S].
        sample: [r], index along N.
        offsets: [r, T], index along S.
        places: [r], the rows to fill in.
        rows: [G, R, C/G * T], written to.
    """
    taps = offsets.shape[1]
    each = rows.shape[2] // taps
    for i in range(sample.size):
        for g in range(rows.shape[0]):
            for c in range(each):
                source = values[sample[i], g * each + c]
                for t in range(taps):
                    offset = offsets[i, t]
                    rows[g, places[i], c * taps + t] = source[offset] if offset >= 0 else np.float32(0)
