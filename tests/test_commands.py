"""`python -m models` as a whole: every command answers --help, and Ctrl-C ends with one line."""

import signal

import pytest

from models import __main__ as door
from models.commands import show
from models.data.files import in_parallel


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        door.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m models {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("stopped at step 7"), "stopped at step 7")],
)
def test_an_interrupted_command_ends_with_one_line(
    interrupt: KeyboardInterrupt, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise interrupt

    monkeypatch.setattr(show, "main", interrupted)
    assert door.main(["show", "camvid-adpc-w18"]) == 130
    assert capsys.readouterr() == ("", f"python -m models: {line}\n")


def test_ctrl_c_while_a_command_loads_is_said_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "add_arguments", lambda _: signal.raise_signal(signal.SIGINT))
    assert door.main(["show", "camvid-adpc-w18"]) == 130
    assert capsys.readouterr().err == "python -m models: interrupted\n"


def test_after_a_failure_the_items_that_have_not_begun_are_left() -> None:
    begun = []

    def fail(item: int) -> None:
        begun.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        in_parallel(fail, range(10_000))
    assert len(begun) < 10_000
