"""What this machine, or the container, lets the process use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GUESS = 4 << 30

_ROOT = Path("/sys/fs/cgroup")

_SHARE = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
"""The older version of a container's share of time: microseconds of processors in a period, and of the period."""

_GROUPS = (
    (".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limit stands, what it uses, and how much of that are files that were read, in both versions."""


def available_cores() -> int:
    """Processors that this process may use: those it may run on, or as many as a container's share of time is worth."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for share in (_text_of(_ROOT / "cpu.max"), " ".join(_text_of(_ROOT / "cpu" / name) for name in _SHARE)):
        words = share.split()
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
            allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return allowed


def available_memory() -> int:
    """Bytes of memory that are free, inside the container if there is one; a cautious guess where nobody says."""
    return min(_free_on_the_machine(), _free_in_the_container())


def _free_on_the_machine() -> int:
    return _entry(_text_of(Path("/proc/meminfo")), "MemAvailable:") * 1024 or _GUESS


def _free_in_the_container() -> int:
    """Files that were read count as free, but for those in use: the system forgets them when memory is short."""
    free = 1 << 62
    for name, limit_file, usage_file, cached in _GROUPS:
        folder = _ROOT / name
        limit, used = _text_of(folder / limit_file).strip(), _text_of(folder / usage_file).strip()
        if limit.isdecimal() and used.isdecimal():
            free = min(free, int(limit) - int(used) + _entry(_text_of(folder / "memory.stat"), cached))
    return max(free, 0)


def _entry(text: str, name: str) -> int:
    """The number behind a name that begins a line; 0 where there is none."""
    lines = (line.split() for line in text.splitlines())
    return next((int(words[1]) for words in lines if len(words) > 1 and words[0] == name), 0)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
