"""Which layers of a network should not be quantized: ranking, and the choice of as few as will do.

Both are plain functions over callables and know no model.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence
from functools import cache

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


def choose(
    ranking: Sequence[str], is_enough: Callable[[Layers, Layers], bool], widenable: Collection[str] = ()
) -> tuple[Layers, Layers] | None:
    """As few layers of a ranking as possible, so that it is enough to leave these float; None where all would have to.

    Before any layer becomes float, all that can be are widened: more and more of the most harmful ones, then float ones
    beside them. The first sufficient step on that way is looked for by bisection, then as few widened layers as do
    beside these float ones. At the end every layer, beginning with the most harmless, is taken back where it is still
    enough, until none can be.

    Args:
        ranking: layers, the most harmful first.
        is_enough: whether it is to leave the first layers float and to widen the second; asked once for each choice.
            It is known that none at all are too few.
        widenable: layers that can be widened, which costs less than leaving them float.

    Returns:
        The layers that stay float, and those that are widened.
    """
    is_enough = cache(is_enough)
    wide = [name for name in ranking if name in widenable]

    def step(number: int) -> tuple[Layers, Layers]:
        floats = frozenset(ranking[: max(0, number - len(wide))])
        return floats, frozenset(wide[:number]) - floats

    last = len(wide) + len(ranking)
    reached = _first_true(0, last, lambda number: is_enough(*step(number)))
    if reached == last:
        return None
    floats, widened = step(reached)
    if floats:
        rest = [name for name in wide if name not in floats]
        needed = _first_true(-1, len(rest), lambda count: is_enough(floats, frozenset(rest[:count])))
        widened = frozenset(rest[:needed])
    return _taken_back(floats, widened, ranking, widenable, is_enough)


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number above `low` for which it holds, which it does for `high`; found by bisection."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _taken_back(
    floats: Layers,
    widened: Layers,
    ranking: Sequence[str],
    widenable: Collection[str],
    is_enough: Callable[[Layers, Layers], bool],
) -> tuple[Layers, Layers]:
    before = None
    while before != (floats, widened):  # once one is taken back, another that was needed may be so no more
        before = floats, widened
        for name in reversed([name for name in ranking if name in floats | widened]):
            tries = [(floats - {name}, widened - {name})]
            if name in floats and name in widenable:
                tries.append((floats - {name}, widened | {name}))
            for fewer, narrower in tries:
                if fewer | narrower and is_enough(fewer, narrower):
                    floats, widened = fewer, narrower
                    break
    return floats, widened
