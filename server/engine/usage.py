"""What a process uses of the machine: proc(5), on Linux only."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """`cpu_s`: seconds on all cores since the process began. `memory_bytes`: what it holds in memory."""

    cpu_s: float = 0.0
    memory_bytes: int = 0


def usage(pid: int) -> Usage:
    """What a process uses; nothing if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return Usage()
    user, system, pages = (int(fields[index]) for index in (11, 12, 21))
    return Usage((user + system) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))
