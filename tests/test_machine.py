"""The cores and the memory that control groups leave to a process."""

import math
from pathlib import Path

import pytest
import torch

from models.executors import machine as cores
from models.machine import memory_bytes, quota


@pytest.mark.parametrize("membership, files, expected", [
    ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # a container, version 2
    ("0::/", {"cpu.max": "max 100000"}, math.inf),
    ("0::/", {}, math.inf),  # the root of a machine
    ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),  # set on a group above
    ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
    ("4:memory:/x\n3:cpu,cpuacct:/a/1f", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
    ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ("3:cpuset:/", {"cpu.max": "100000 100000"}, math.inf),
    ("0::/", {"cpu.max": "garbage"}, math.inf),
])  # fmt: skip
def test_a_quota_is_found(tmp_path: Path, membership: str, files: dict[str, str], expected: float) -> None:
    write_groups(tmp_path, membership, files)
    assert quota(tmp_path) == expected


@pytest.mark.parametrize("membership, files, expected", [
    ("0::/", {"memory.max": "1048576\n"}, 2**20),
    ("0::/a/b", {"a/memory.max": "4096", "a/b/memory.max": "max"}, 4096),  # set on a group above
    ("0::/", {"memory.max": "max"}, None),
    ("7:memory:/x", {"memory/memory.limit_in_bytes": "8192"}, 8192),
    ("7:memory:/", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),  # how version 1 says that there is none
    ("3:cpuset:/", {"memory.max": "4096"}, None),
])  # fmt: skip
def test_the_memory_is_the_machines_or_what_a_group_leaves_of_it(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int | None
) -> None:
    write_groups(tmp_path, membership, files)
    assert memory_bytes(tmp_path) == (memory_bytes(tmp_path / "no groups") if expected is None else expected)


def write_groups(root: Path, membership: str, files: dict[str, str]) -> None:
    for name, text in {"proc/self/cgroup": membership, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path) == math.inf


@pytest.mark.parametrize("quota, expected", [(math.inf, 8), (16.0, 8), (2.9, 2), (0.5, 1)])
def test_threads_fit_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores, "CORES", 8)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.usable() == expected


def test_the_threads_of_one_executor_do_not_change_what_the_next_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: math.inf)
    threads = cores.usable()
    torch.set_num_threads(threads + 1)
    try:
        assert cores.usable() == threads
    finally:
        torch.set_num_threads(threads)
