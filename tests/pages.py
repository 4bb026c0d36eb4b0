"""The documents of the repository: their commands and programs, fit for a live server of tests."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "clients").glob("*.md"),
        *(ROOT / "models" / "zoo").rglob("*.md"),
    )
)
LONG_S = 20.0
"""Replaces the deadlines of the pages, since the machine may be busy while it tests."""
MODEL, TINY = "camvid-adpc-w18", "tiny-segmentation"
"""The model of the pages, and the one that tests serve."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns (language, text) for each code block of a page. An indented block names no language and counts as
    `sh`."""
    text = (ROOT / page).read_text()
    indented = re.findall(
        r"(?:(?<=\n\n)|(?<=\A))((?:    \S.*\n)+)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    )
    return [*re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M), *(("sh", block) for block in indented)]


def commands(page: str) -> list[list[str]]:
    """The words of every command of a page, without what belongs to the place where it stands."""
    lines = [
        line
        for language, text in blocks(page)
        if language in ("", "sh")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line, comments=True) for line in lines]
    return [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in found if words]


def programs(page: str) -> list[str]:
    return [text for language, text in blocks(page) if language == "python"]


def adapted(text: str, url: str) -> str:
    """`text` for the server of tests at `url`, with deadlines that a busy machine keeps."""
    text = re.sub(r'(deadline[-_]ms"?[=: ]+|--deadline-ms )\d\d+', rf"\g<1>{1000 * LONG_S:.0f}", text)
    text = re.sub(r"(timeout=)\d[\d_]+", rf"\g<1>{1e6 * LONG_S:.0f}", text)  # microseconds, of version 2
    text = text.replace(MODEL, TINY)
    return re.sub(r"(localhost|127\.0\.0\.1):8000", url.removeprefix("http://"), text)
