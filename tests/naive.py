"""Slow, plain twins of the kernels: what they compute, written down as in the description, to compare them with."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
FLT_EPS = 2.0**-23


def scale_and_offset(low: float, high: float, *, asymmetric: bool, num_bits: int) -> tuple[np.float32, int]:
    """AMCT's scale and offset of a range, one at a time."""
    low, high = F32(low), F32(high)
    half = 2 ** (num_bits - 1)
    if asymmetric:
        low, high = min(low, F32(0)), max(high, F32(0))
        scale = F32(high - low) / F32(2 * half - 1)
    elif abs(high) < abs(low):
        scale = abs(low) / F32(half)
    else:
        scale = abs(high) / F32(half - 1)
    if scale < FLT_EPS:
        return F32(1), -half if asymmetric else 0
    return scale, round(float(F32(-half) - low / scale)) if asymmetric else 0


def quantize(
    array: NDArray[Any], scale: NDArray[Any], offset: NDArray[Any], *, num_bits: int, axis: int | None
) -> list:
    """The integers as a flat list, in the order of `array`."""
    integers = []
    for index in np.ndindex(array.shape):
        channel = () if axis is None else index[axis]
        level = F32(array[index]) / F32(scale[channel]) + F32(offset[channel])
        integers.append(int(min(max(round(float(level)), -(2 ** (num_bits - 1))), 2 ** (num_bits - 1) - 1)))
    return integers


def round_to_fp16(scale: float) -> float:
    if 2.0**-14 <= scale <= 65504:
        return float(np.float16(scale))
    return float(np.float16(min(math.sqrt(scale), 65504))) ** 2


def truncate_to_s19(value: float) -> float:
    """Cut the significand to 10 bits behind the point."""
    if value == 0:
        return 0.0
    mantissa, exponent = math.frexp(float(F32(value)))
    return math.ldexp(math.trunc(mantissa * 2**11), exponent - 11)


def percentile(values: NDArray[np.float32], share: float) -> np.float32:
    """The value that `share` of the values do not exceed, or 0 where that is larger."""
    rank = 1 if 1 - share < FLT_EPS else max(1, len(values) - math.floor(share * len(values)))
    return max(F32(0), np.sort(values)[-rank])


def ifmr_candidates(
    values: NDArray[np.float32],
    *,
    search_range: tuple[float, float] = (0.7, 1.3),
    search_step: float = 0.01,
    max_percentile: float = 0.999999,
    min_percentile: float = 0.999999,
    asymmetric: bool,
    num_bits: int = 8,
) -> tuple[list[np.float32], list[int], list[float]]:
    """Scale, offset and loss of every candidate: all values quantized once for each."""
    high, low = percentile(values, max_percentile), -percentile(-values, min_percentile)
    half = 2 ** (num_bits - 1)
    scales, offsets, losses = [], [], []
    for ratio in np.arange(*search_range, search_step):
        if asymmetric:
            bottom, top = low, F32(ratio) * high
            scale = F32(top - bottom) / F32(2 * half - 1)
        else:
            top = F32(ratio) * max(high, -low)
            bottom = -top
            scale = top / F32(half if high < -low else half - 1)
        scale = F32(1) if scale < FLT_EPS else scale
        rounded = np.round(np.clip(values, bottom, top) / scale) * scale
        scales.append(scale)
        offsets.append(int(-np.round(low / scale)) - half if asymmetric else 0)
        losses.append(float(((rounded - values).astype(np.float64) ** 2).mean()))
    return scales, offsets, losses


def hfmg_windows(counts: list[int]) -> list[tuple[int, int]]:
    """First and last bin of the ranges that greedy shrinking passes through."""
    step = max(1, math.ceil(sum(counts) / 100000))
    left, right = 0, len(counts) - 1
    windows = []
    while right - left > math.ceil(len(counts) / 4):
        next_left = left
        while next_left < right and sum(counts[left:next_left]) < step:
            next_left += 1
        next_right = right
        while next_left < next_right and sum(counts[next_right + 1 : right + 1]) < step:
            next_right -= 1
        if right - next_right >= next_left - left:
            right = next_right
        else:
            left = next_left
        windows.append((left, right))
    return windows


def hfmg_loss(counts: list[int], left: int, right: int, num_bits: int) -> float:
    """The squared error over a window, in units of a bin: every bin cut where a step ends, and integrated in pieces."""
    levels = 2**num_bits
    step = (right - left + 1) / levels
    loss = 0.0
    for i, count in enumerate(counts):
        begin = i - left
        cuts = [k * step for k in range(1, levels) if begin < k * step < begin + 1] if count else []
        for start, end in zip([begin, *cuts], [*cuts, begin + 1], strict=True):
            level = min(max(math.floor((start + end) / 2 / step), 0), levels - 1)
            centre = (level + 0.5) * step
            loss += count * ((end - centre) ** 3 - (start - centre) ** 3) / 3
    return loss


def hfmg_range(counts: list[int], low: float, high: float, *, num_bits: int) -> tuple[float, float]:
    width = (high - low) / len(counts)
    best, smallest = (0, len(counts) - 1), math.inf
    for left, right in hfmg_windows(counts):
        lossless = (right - left + 1) * width / 2**num_bits < FLT_EPS
        loss = 0.0 if lossless else hfmg_loss(counts, left, right, num_bits)
        if loss < smallest:
            best, smallest = (left, right), loss
    return low + best[0] * width, low + (best[1] + 1) * width


def hfmg_count(values: NDArray[np.float32], low: float, high: float, bins: int) -> list[int]:
    counts = [0] * bins
    low, high = F32(low), F32(high)
    for value in values:
        counts[0 if high == low else min(int((value - low) * F32(bins) / (high - low)), bins - 1)] += 1
    return counts


def hfmg_pour(counts: list[int], old: tuple[float, float], new: tuple[float, float]) -> list[int]:
    """The counts over `old` in the bins over the wider range `new`."""
    if all(math.isclose(a, b, abs_tol=FLT_EPS) for a, b in zip(old, new, strict=True)):
        return counts
    bins = len(counts)
    width, new_width = (F32(F32(end) - F32(start)) / F32(bins) for start, end in (old, new))
    poured = [0] * bins
    for i, count in enumerate(counts):
        lower, upper = (F32(old[0]) + F32(k) * width for k in (i, i + 1))
        first, last = (min(int((edge - F32(new[0])) // new_width), bins - 1) for edge in (lower, upper))
        below = count
        if first != last:
            border = F32(new[0]) + F32(first + 1) * new_width
            below = int(F32(count) * min(max((border - lower) / (upper - lower), F32(0)), F32(1)))
        poured[first] += below
        poured[last] += count - below
    return poured


def arq(weight: NDArray[Any], *, axis: int | None, num_bits: int) -> list[np.float32]:
    """The scales, channel by channel."""
    channels = [weight] if axis is None else np.moveaxis(weight, axis, 0)
    return [scale_and_offset(float(c.min()), float(c.max()), asymmetric=False, num_bits=num_bits)[0] for c in channels]


def balance_factors(activation: list[float], weight: list[float], strength: float) -> list[float]:
    """DMQ's factors, one channel at a time."""
    pairs = list(zip(activation, weight, strict=True))
    if all(a < FLT_EPS for a in activation) or all(w < FLT_EPS for w in weight):
        return [1.0] * len(pairs)
    plain = [a**strength / w ** (1 - strength) if a >= FLT_EPS and w >= FLT_EPS else None for a, w in pairs]
    known = [(a, w, f) for (a, w), f in zip(pairs, plain, strict=True) if f is not None]
    factors = []
    for (a, w), f in zip(pairs, plain, strict=True):
        if f is None:
            f = 1.0
            if known and a < FLT_EPS <= w:
                f = max(w_j * f_j for _, w_j, f_j in known) / w
            elif known and w < FLT_EPS <= a:
                f = a / max(a_j / f_j for a_j, _, f_j in known)
        factors.append(min(max(f, FLT_EPS), 1 / FLT_EPS))
    return factors


def fewest_loss(counts: dict[int, int], number: int) -> int:
    """The smallest squared error that `number` integers leave: every division into runs, every integer for each."""
    values = sorted(counts)

    def loss(run: list[int]) -> int:
        return min(sum(counts[v] * (v - c) ** 2 for v in run) for c in range(run[0], run[-1] + 1))

    best = {0: 0}  # values that are done -> loss, with the runs so far
    for _ in range(number):
        best = {
            end: min(best[start] + (loss(values[start:end]) if end > start else 0) for start in best if start <= end)
            for end in range(len(values) + 1)
        }
    return best[len(values)]


def unpacked(pairs: list[int]) -> list[int]:
    """Signed bytes as two 4-bit integers each, the one in the low half first."""
    halves = [half for byte in pairs for half in (byte % 16, byte % 256 // 16)]
    return [half - 16 if half > 7 else half for half in halves]


def packed(levels: list[int]) -> list[int]:
    """4-bit integers in pairs, the first in the low half of a signed byte."""
    found = []
    for low, high in zip(levels[0::2], levels[1::2], strict=True):
        byte = (low % 16) + 16 * (high % 16)
        found.append(byte - 256 if byte > 127 else byte)
    return found


def kl_scale(channel: NDArray[Any], *, num_bits: int) -> np.float32:
    """The scale of one channel: 20 trimmed histograms, each compared with itself merged into groups."""
    values = np.asarray(channel, F32).ravel()
    bound = F32(abs(values).max())
    if bound == 0:
        return F32(1)
    counts = [0] * 512
    for value in values:
        counts[min(int((value + bound) * F32(512) / (bound + bound)), 511)] += 1
    divergences = []
    for trim in range(20):
        kept = counts[trim : 512 - trim]
        kept[0] += sum(counts[:trim])
        kept[-1] += sum(counts[512 - trim :])
        merged = [0.0] * len(kept)
        groups = 2**num_bits - 1
        edges = [math.ceil(group * (len(kept) / groups)) for group in range(groups)] + [len(kept)]
        for start, end in itertools.pairwise(edges):
            filled = [k for k in range(start, end) if kept[k]]
            for k in filled:
                merged[k] = sum(kept[start:end]) / len(filled)
        divergences.append(kl_divergence(kept, merged))
    trim = min(range(20), key=lambda i: divergences[i])
    return (bound - F32(trim) * ((bound + bound) / F32(512))) / F32(2 ** (num_bits - 1))


def kl_divergence(kept: list[int], merged: list[float]) -> float:
    empty = kept.count(0)
    more = 1e-4 * empty / (len(kept) - empty)
    p, q = ([v + more if v else 1e-4 for v in counts] for counts in (kept, merged))
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


def soft_rounding(alpha: float) -> float:
    return min(max(1.2 / (1 + math.exp(-alpha)) - 0.1, 0.0), 1.0)


def adaround_loss(alpha: NDArray[Any], layer: Any, activation: Any, reg_param: float, beta: float | None) -> float:
    """The loss of one group: mean over rows of the squared error of all channels, and the regulariser. alpha [M, K]."""
    loss = 0.0
    rows, base, target = (np.asarray(part[0], float) for part in (layer.rows, layer.base, layer.target))
    for m, k in np.ndindex(*alpha.shape):
        if beta is not None:
            loss += reg_param * (1 - abs(2 * soft_rounding(alpha[m, k]) - 1) ** beta)
    for r in range(len(rows)):
        for m in range(len(alpha)):
            y = base[r, m] + target[r, m]
            for k in range(alpha.shape[1]):
                weight, scale = float(layer.weight[0, m, k]), float(layer.scale[0, m, 0])
                level = math.floor(weight / scale) + soft_rounding(alpha[m, k])
                y += rows[r, k] * (min(max(level, layer.limits[0]), layer.limits[1]) * scale - weight)
            loss += (activation(y) - activation(target[r, m])) ** 2 / len(rows)
    return loss


def adaround(layer: Any, parameters: Any, activation: Any) -> list[list[float]]:
    """The integers of one group."""
    weight, scale = np.asarray(layer.weight[0], float), np.asarray(layer.scale[0], float)
    soft = adaround_soft(layer, parameters, activation, step=max(1e-3, 10 / parameters.num_iteration))
    return np.clip(np.floor(weight / scale) + (soft > 0.5), *layer.limits).tolist()


def adaround_soft(layer: Any, parameters: Any, activation: Any, *, step: float) -> NDArray[Any]:
    """How far each weight of one group goes up: the gradient of the loss by differences, Adam one weight at a time."""
    weight, scale = np.asarray(layer.weight[0], float), np.asarray(layer.scale[0], float)
    share = weight / scale - np.floor(weight / scale)
    alpha = -np.log(1.2 / (share + 0.1) - 1)
    first, second = np.zeros_like(alpha), np.zeros_like(alpha)
    for iteration in range(parameters.num_iteration):
        warm = parameters.warm_start * parameters.num_iteration
        start, end = parameters.beta_range
        done = (iteration - warm) / (parameters.num_iteration - warm)
        beta = None if done < 0 else end + (start - end) / 2 * (1 + math.cos(math.pi * done))
        slope = np.zeros_like(alpha)
        for place in np.ndindex(*alpha.shape):
            if not 0 < soft_rounding(alpha[place]) < 1:
                continue
            moved = [alpha.copy(), alpha.copy()]
            moved[0][place] -= 1e-4
            moved[1][place] += 1e-4
            below, above = (adaround_loss(a, layer, activation, parameters.reg_param, beta) for a in moved)
            slope[place] = (above - below) / 2e-4
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        unbiased = first / (1 - 0.9 ** (iteration + 1)), second / (1 - 0.999 ** (iteration + 1))
        alpha = alpha - step * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return np.vectorize(soft_rounding)(alpha)


def selective_mask(weight, axis):
    """2:4 sparsity one four after the other."""
    mask = np.zeros(weight.shape, bool)
    other = [range(size) for i, size in enumerate(weight.shape) if i != axis]
    for place in itertools.product(*other):
        for start in range(0, weight.shape[axis], 4):
            four = range(start, min(start + 4, weight.shape[axis]))
            spots = [(*place[:axis], i, *place[axis:]) for i in four]
            size = {s: np.inf if np.isnan(weight[s]) else abs(float(weight[s])) for s in spots}
            for spot in sorted(spots, key=lambda s: -size[s])[:2]:
                mask[spot] = True
    return mask


def equalisation_factors(rows: list[list[float]], bias: list[float] | None, behind: list[float]) -> list[float]:
    """One factor for each channel, bias damping as in Vitis AI."""
    sizes, filled, ranges = [], [], []
    for channel, row in enumerate(rows):
        used = [abs(w) for w in row if w != 0]
        filled += [max(abs(w) if w != 0 else min(used, default=1e-7), 1e-7) for w in row]
        sizes += [abs(bias[channel]) if bias is not None and used else 0.0]
    ratios = [sizes[i] / filled[i * len(row) + j] for i, row in enumerate(rows) for j in range(len(row))]
    median, mean = sorted(ratios), sum(ratios) / len(ratios)
    middle = (median[(len(ratios) - 1) // 2] + median[len(ratios) // 2]) / 2
    if max(sizes) < 10 and max(sizes) / max(filled) < 20:
        k = 5 if middle > 100 or mean > 1000 else 2
    else:
        k = 20 if middle > 30 or mean > 500 else 10 if middle > 15 or mean > 100 else 5
    for channel, row in enumerate(rows):
        ranges.append(max([abs(w) for w in row] + ([sizes[channel] / k] if bias is not None else [])))
    return [1.0 if r * b == 0 or r + b < 0.5 else r / math.sqrt(r * b) for r, b in zip(ranges, behind, strict=True)]


def stepwise_bias(bias: list[float], batches: list[tuple[list[list[float]], list[list[float]]]]) -> list[float]:
    """Vitis AI's bias correction; of each batch what is found and what is wanted, a list for each channel."""
    bias, smooth, spread = list(bias), 0.0, 0.0
    for found, wanted in batches:
        errors = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(found, wanted, strict=True)]
        count = sum(len(channel) for channel in errors)
        noise = sum(e * e for channel in errors for e in channel) / count
        signal = sum(v * v for channel in wanted for v in channel) / count
        if noise == 0 or signal == 0:
            break
        efficiency = 1.25 * math.log10(signal / noise)
        distance = abs(efficiency - smooth)
        if distance == 0:
            break
        smooth, spread = (4 * smooth + efficiency) / 5, (4 * spread + distance) / 5
        if smooth > 4.3 or spread / smooth < 0.05 or abs(distance - spread / distance) < 0.05:
            break
        rate = 0.025 if smooth > 4 else 0.05
        bias = [b - rate * sum(channel) / len(channel) for b, channel in zip(bias, errors, strict=True)]
    return bias


def cast(value: float, digits: int, least: int) -> float:
    """The nearest number of so many binary digits that is a multiple of 2^least; of two the even one."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = max(math.frexp(value)[1] - digits, least)
    return math.copysign(math.ldexp(round(math.ldexp(value, -unit)), unit), value)


def rounded(value: float, mode: str) -> float:
    """To the nearest integer; a half goes where `mode` says."""
    below = math.floor(value)
    if value - below != 0.5:
        return float(below if value - below < 0.5 else below + 1)
    up = {
        "half_even": below % 2 == 1,
        "half_up": True,
        "half_down": value < 0,
        "std_round": value > 0,
    }[mode]
    return float(below + up)


def position_of_range(values: NDArray[np.float32], bits: int) -> int:
    """The largest position whose range, and half a step more, holds all values, by trying."""
    half, cap = 2 ** (bits - 1), 12 if bits <= 8 else 15
    if not np.any(values):
        return cap
    low, high = float(values.min()), float(values.max())
    step = max(float(F32(low) / F32(-half - 0.5)), float(F32(high) / F32(half - 0.5)))
    return next(p for p in range(cap, -200, -1) if step * 2.0**p <= 1)


def position_of_least_error(values: NDArray[np.float32], bits: int, mode: str) -> int:
    """The best of five positions, one value at a time."""
    half, cap = 2 ** (bits - 1), 12 if bits <= 8 else 15
    low, high = float(values.min()), float(values.max())
    step = max(float(F32(low) / F32(-half - 0.5)), float(F32(high) / F32(half - 0.5)))
    first = 18 if step == 0 else math.floor(math.log2(1 / step))
    best = None
    for p in range(first, first + 5):
        error = 0.0
        for value in values:
            level = min(max(rounded(float(F32(value * F32(2.0**p))), mode), -half), half - 1)
            error += float(value - F32(level) * F32(2.0**-p)) ** 2
        if best is None or error < best[0]:
            best = (error, p)
    assert best is not None
    return min(best[1], cap)


def _bins(values: NDArray[np.float32]) -> tuple[list[int], NDArray[np.float32]]:
    largest = F32(np.abs(values).max())
    counts = [0] * 2048
    for value in values:
        counts[0 if largest == 0 else min(int(F32(abs(value) * F32(2048)) / largest), 2047)] += 1
    return counts, np.linspace(0, largest, 2049, dtype=np.float32)


def clip_by_percentile(values: NDArray[np.float32], percentage: float) -> float:
    """The left edge of the first bin up to which the share lies."""
    counts, edges = _bins(values)
    share = 0.0
    for index, count in enumerate(counts):
        share += count / len(values)
        if share >= percentage / 100:
            return float(edges[index])
    return float(edges[2048])


def clips_by_entropy(values: NDArray[np.float32], groups: int) -> list[float]:
    """The edges of the candidates that diverge least, within rounding."""
    counts, edges = _bins(values)
    counts[0] = counts[1]
    found = []
    for n in range(1536, 2049, 16):
        reference = [*counts[: n - 1], counts[n - 1] + sum(counts[n:])]
        group = [min(int(j / (n / groups)), groups - 1) for j in range(n)]
        spread = []
        for j in range(n):
            same = [counts[i] for i in range(n) if group[i] == group[j]] if counts[j] else []
            spread.append(sum(same) / sum(c > 0 for c in same) if same else 0.0)
        total_p, total_q = sum(reference), sum(spread)
        if not total_p or not total_q or any(p and not q for p, q in zip(reference, spread, strict=True)):
            found.append((math.inf, n))
            continue
        terms = ((p / total_p, q / total_q) for p, q in zip(reference, spread, strict=True) if p)
        found.append((sum(p * math.log(p / q) for p, q in terms), n))
    least = min(divergence for divergence, _ in found)
    return [float(edges[n]) for divergence, n in found if divergence <= least + 1e-9]


def naive_distribution(values, bars=64):
    """Lowest and highest value, zero included, and how many values lie in each of equal bars between them."""
    low, high = min(0.0, float(min(values))), max(0.0, float(max(values)))
    counts = [0] * bars
    for value in values:
        place = 0 if low == high else int((float(value) - low) / (high - low) * bars)
        counts[min(place, bars - 1)] += 1
    return low, high, np.array(counts)
