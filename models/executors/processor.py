"""The processor that measured figures come from."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's model name as the system tells it; what Python knows of it otherwise."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
