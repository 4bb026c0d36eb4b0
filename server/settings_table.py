"""python -m server settings: the table of all settings, as Markdown; --update FILE renews it in a document."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.settings import PREFIX, PROGRAM, ROOT, Settings, flag

HEAD = "| flag | variable | default | meaning |"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} settings", description="Print the table of all settings.", allow_abbrev=False
    )
    parser.add_argument("--update", metavar="FILE", type=Path, help="put it into this document, which has an older one")
    path = parser.parse_args(argv).update
    if path is None:
        print(settings_table())
    else:
        path.write_text(updated(path.read_text()))
    return 0


def updated(document: str) -> str:
    """`document` with its table renewed."""
    return re.sub(rf"{re.escape(HEAD)}\n(\|.*\n)*", lambda _: settings_table() + "\n", document)


def settings_table() -> str:
    return "\n".join(_rows())


def _rows() -> Iterator[str]:
    yield HEAD
    yield "|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        yield f"| `{flag(name)}` | `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"


def _shown(default: object) -> str:
    """A default value as a user would write it; paths are relative to the checkout."""
    text = str("" if default in (None, False) else default).removeprefix(f"{ROOT}/")
    return f"`{text}`" if text else ""
