"""The digest of the native sources, by which a library tells that it was built from them.

setup.py runs this file by its path, because it cannot import the package.
"""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """SHA-256 in hex over names and contents of the C++ files in `folder`; "" if there are none, as in an install
    without sources."""
    paths = sorted((*folder.glob("*.cpp"), *folder.glob("*.h")))
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest() if paths else ""
