"""python -m server settings: the table of all settings in docs/operations.md, as Markdown."""

from collections.abc import Iterator

from server.settings import PREFIX, ROOT, Settings, flag


def settings_table() -> str:
    return "\n".join(_rows())


def _rows() -> Iterator[str]:
    yield "| flag | variable | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        yield f"| `{flag(name)}` | `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"


def _shown(default: object) -> str:
    """A default as one writes it; paths from the checkout on."""
    text = str("" if default in (None, False) else default).removeprefix(f"{ROOT}/")
    return f"`{text}`" if text else ""
