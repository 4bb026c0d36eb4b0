"""The process of one stage: `python -m models.gpu_day MODULE:FUNCTION JSON`.

The JSON holds the arguments by name; the function is called with those that it takes. It also gets `deadline`, the
time.monotonic() by which it should return, and `line`, which writes a line of the report. What it prints goes to the
log. It succeeds unless it returns False or raises.
"""

import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from models.gpu_day.stages import MISSING, MissingError


def main(argv: list[str]) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    began_s = time.monotonic()
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def line(text: str) -> None:
        report.write(" ".join(text.splitlines()) + "\n")
        report.flush()

    arguments: dict[str, Any] = json.loads(argv[1])
    given = {
        **arguments,
        **{name: Path(arguments[name]) for name in ("data", "output") if arguments.get(name)},
        "deadline": began_s + arguments["seconds"],
        "line": line,
    }
    try:
        module, _, name = argv[0].partition(":")
        job = getattr(importlib.import_module(module), name)
        taken = inspect.signature(job).parameters
        right = job(**{key: value for key, value in given.items() if key in taken})
    except MissingError as error:
        line(str(error))
        return MISSING
    except Exception as error:  # any error ends this stage only
        traceback.print_exc()
        line(f"{type(error).__name__}: {error}")
        return 1
    return 1 if right is False else 0


def _end_with_parent() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
