"""What this machine lets the process use."""

from __future__ import annotations

import os
from pathlib import Path

_GUESS = 4 << 30

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_IN_USE = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


def available_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that are free, inside the container if there is one; a cautious guess where nobody says."""
    return min(_free_on_the_machine(), _free_in_the_container())


def _free_on_the_machine() -> int:
    for line in _text_of(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _GUESS


def _free_in_the_container() -> int:
    free = [
        int(limit) - int(used)
        for limit, used in ((_text_of(a).strip(), _text_of(b).strip()) for a, b in zip(_LIMITS, _IN_USE, strict=True))
        if limit.isdecimal() and used.isdecimal()
    ]
    return max(min(free, default=1 << 62), 0)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
