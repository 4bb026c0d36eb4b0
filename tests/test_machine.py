"""The cores that control groups leave to a process."""

import math
from pathlib import Path

import pytest
import torch

from models.executors import machine as cores


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
    for name, text in {"proc/self/cgroup": membership, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.quota(tmp_path) == expected


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert cores.quota(tmp_path) == math.inf


@pytest.mark.parametrize("quota, expected", [(math.inf, 8), (16.0, 8), (2.9, 2), (0.5, 1)])
def test_threads_fit_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.usable() == expected
