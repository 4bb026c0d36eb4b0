"""How many cores this process may compute on. Imports nothing of the project."""

import math
from pathlib import Path, PurePosixPath

import torch


def usable() -> int:
    """torch's number of threads - the cores that the process may run on - or fewer if its control groups allow it less
    time: threads that wait for each other would be stopped together until the next period begins."""
    return min(torch.get_num_threads(), max(1, math.floor(min(quota(), 1024))))


def quota(root: Path = Path("/")) -> float:
    """Cores whose time the control groups of this process allow it, as `docker run --cpus` and limits in Kubernetes set
    them; inf without a limit. Linux's cgroups, version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`); a limit holds for all
    groups below it.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf  # another system
    found = math.inf
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        hierarchy = "" if not controllers else "cpu" if "cpu" in controllers.split(",") else None
        if hierarchy is None:
            continue
        # In a container only the groups from its own on are to be seen, under names of their own.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            found = min(found, _allowed(root / "sys/fs/cgroup" / hierarchy / group.relative_to("/")))
    return found


def _allowed(group: Path) -> float:
    """Cores that one group's limit is worth."""
    try:
        if (group / "cpu.max").exists():
            quota_us, period_us = (group / "cpu.max").read_text().split()
        else:
            quota_us, period_us = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = math.inf if quota_us == "max" else int(quota_us) / int(period_us)
    except (OSError, ValueError):
        return math.inf  # the root has no such file
    return limit if limit > 0 else math.inf  # -1: none
