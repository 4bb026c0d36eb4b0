"""The server: an application that is run from its checkout or image, not a library."""

from pathlib import Path

import models

_HERE = Path(__file__).resolve().parent.parent
_FOUND = [Path(path).resolve() for path in models.__path__]
if _HERE / "models" not in _FOUND:
    raise ImportError(
        f"another package called `models` was imported, from {', '.join(map(str, _FOUND))}; the server needs "
        f"the one in {_HERE}: run it in its own environment, or put {_HERE} first on PYTHONPATH"
    )
