"""Which layers of a network should not be quantized: ranking, and the choice of as few as will do.

Both are plain functions over callables and know no model.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence

Layers = frozenset[str]

Ranking = list[tuple[str, float]]
"""Layers, the most sensitive first, each with the value that says so."""

_LOOKS = 3
"""How many candidates are measured again before one of them is taken."""


def rank(layers: Sequence[str], noise: Callable[[Layers], float]) -> Ranking:
    """The layers, those first that do most harm when they are quantized, each with the noise that it makes alone.

    The order is found from the harmless end: beginning with a float network, that layer is quantized next which adds
    least to the noise at the outputs, measured beside all that were quantized before. What layers do to each other is
    thus measured where it matters, among the worst; the harmless half is taken in the order of what each does alone.

    Args:
        layers: their names.
        noise: what the outputs carry where just these layers are float. Called about 2.5 times per layer.
    """
    everything = frozenset(layers)
    alone = {name: noise(everything - {name}) for name in layers}
    first = sorted(layers, key=lambda name: alone[name])
    order = first[: len(first) // 2]
    now = noise(everything - set(order))
    queue = [(alone[name], place, name) for place, name in enumerate(first[len(order) :])]
    while queue:
        looked: list[tuple[float, int, str]] = []
        while queue and len(looked) < _LOOKS and not (looked and looked[0] <= queue[0]):
            _, place, name = heapq.heappop(queue)
            more = noise(everything - {*order, name}) - now
            heapq.heappush(looked, (more, place, name))
        more, _, name = looked[0]
        order.append(name)
        now += more if math.isfinite(more) else 0.0  # from there on the order is that of each layer alone
        for entry in looked[1:]:
            heapq.heappush(queue, entry)
    return [(name, alone[name]) for name in reversed(order)]


def choose(ranking: Sequence[str], is_enough: Callable[[Layers], bool]) -> Layers | None:
    """As few layers of a ranking as possible, so that it is enough to leave these float; None where all would have to.

    The shortest sufficient beginning of the ranking is looked for by bisection; then every layer of it, beginning with
    the most harmless, is quantized again where it is still enough.

    Args:
        ranking: layers, the most harmful first.
        is_enough: whether it is to leave just these float. It is known that no layer is too few.
    """
    low, high = 0, len(ranking)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(frozenset(ranking[:middle])) else (middle, high)
    if high == len(ranking):
        return None
    return _without_needless(frozenset(ranking[:high]), ranking[: high - 1][::-1], is_enough)


def _without_needless(chosen: Layers, candidates: Collection[str], is_enough: Callable[[Layers], bool]) -> Layers:
    for name in candidates:
        if len(chosen) > 1 and is_enough(chosen - {name}):
            chosen -= {name}
    return chosen
