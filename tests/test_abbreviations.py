"""An option has one name: no parser takes the beginning of it, which another option may have tomorrow."""

import ast
from pathlib import Path

import pytest
from adpc_client.__main__ import main

ROOT = Path(__file__).parent.parent
PARSERS = ("ArgumentParser", "add_parser")


def parsers(path: Path) -> list[ast.Call]:
    """The calls in a module that make a parser of arguments."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).rpartition(".")[2] in PARSERS]


def test_no_parser_takes_abbreviations() -> None:
    sources = [path for folder in ("server", "models", "clients", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = [(path, call) for path in sources if "build" not in path.parts for call in parsers(path)]
    assert len(found) > 20
    assert [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in found
        if "allow_abbrev=False" not in [ast.unparse(keyword) for keyword in call.keywords]
    ] == []


@pytest.mark.parametrize("command", [["models", "--js"], ["predict", "a.png", "--deadline", "5"]])
def test_an_abbreviated_option_is_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*command, "--url", "http://127.0.0.1:9"])
    assert raised.value.code == 2
    assert "unrecognized arguments: --" in capsys.readouterr().err
