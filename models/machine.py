"""The machine: the CPU time and the memory that this process may use. Needs no torch."""

import math
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath


def quota(root: Path = Path("/")) -> float:
    """The CPU time that the control groups of this process allow it, in cores; inf without a limit.

    `docker run --cpus` and limits in Kubernetes set it. Reads Linux's cgroups, version 2 (`cpu.max`) or 1
    (`cpu.cfs_quota_us`), below `root`; the limit of a group holds for all groups in it.
    """
    return _least("cpu", _allowed_cores, root)


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or less if the control groups of this process allow it less (`memory.max`, version 2, or
    `memory.limit_in_bytes`, version 1)."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(installed, _least("memory", _allowed_bytes, root)))


def _least(controller: str, allowed: Callable[[Path], float], root: Path) -> float:
    """The smallest limit that `allowed` reads in the control groups of this process under a controller; inf if none
    sets one."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf  # not Linux
    found = math.inf
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        hierarchy = "" if not controllers else controller if controller in controllers.split(",") else None
        if hierarchy is None:
            continue
        # A container sees only its own group and those in it, under other names.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            found = min(found, allowed(root / "sys/fs/cgroup" / hierarchy / group.relative_to("/")))
    return found


def _allowed_cores(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota_us, period_us = (group / "cpu.max").read_text().split()
        else:
            quota_us, period_us = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = math.inf if quota_us == "max" else int(quota_us) / int(period_us)
    except (OSError, ValueError):
        return math.inf  # the root has no such file
    return limit if limit > 0 else math.inf  # -1: none


def _allowed_bytes(group: Path) -> float:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):  # version 2 says `max` where there is no limit
            continue
    return math.inf
