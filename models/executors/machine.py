"""The machine's cores: how many this process may compute on."""

import math
from pathlib import Path, PurePosixPath

import torch


def usable() -> int:
    """How many threads to compute with: one for each core that the process may run on, or fewer if its control groups
    allow it less time.

    More threads would use up the allowed time early in each period, and all threads would stop until the next one.
    """
    return min(torch.get_num_threads(), max(1, math.floor(min(quota(), 1024))))


def quota(root: Path = Path("/")) -> float:
    """The CPU time that the control groups of this process allow it, in cores; inf without a limit.

    `docker run --cpus` and limits in Kubernetes set it. Reads Linux's cgroups, version 2 (`cpu.max`) or 1
    (`cpu.cfs_quota_us`), below `root`; the limit of a group holds for all groups in it.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf  # not Linux
    found = math.inf
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        hierarchy = "" if not controllers else "cpu" if "cpu" in controllers.split(",") else None
        if hierarchy is None:
            continue
        # A container sees only its own group and those in it, under other names.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            found = min(found, _allowed(root / "sys/fs/cgroup" / hierarchy / group.relative_to("/")))
    return found


def _allowed(group: Path) -> float:
    """The limit of one group, in cores."""
    try:
        if (group / "cpu.max").exists():
            quota_us, period_us = (group / "cpu.max").read_text().split()
        else:
            quota_us, period_us = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = math.inf if quota_us == "max" else int(quota_us) / int(period_us)
    except (OSError, ValueError):
        return math.inf  # the root has no such file
    return limit if limit > 0 else math.inf  # -1: none
