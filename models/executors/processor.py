"""The processor that figures come from. Imports nothing of this project."""

import platform
from pathlib import Path


def processor() -> str:
    """Its model, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
