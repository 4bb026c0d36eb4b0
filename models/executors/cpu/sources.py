"""Which sources a build of the native library comes from. Run by setup.py, which cannot import the package."""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """SHA-256 of the C++ files of `folder`, by name; "" where they are not beside the library."""
    paths = sorted((*folder.glob("*.cpp"), *folder.glob("*.h")))
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest() if paths else ""
