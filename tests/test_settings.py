import asyncio
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.protocols.flow import limit_unread
from server.setting_text import parse_traffic_cap
from server.settings import MAX_UNREAD_S, ROOT, Settings, flag, load_settings
from server.settings_table import HEAD, main, settings_table, updated


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    environ = {"ANYTIME_MAX_OPEN": "7", "ANYTIME_PORT": "1234", "ANYTIME_ACCESS_LOG": "1", "PORT": "9"}
    found = load_settings(["--port", "4321", "--models", "here"], environ)
    assert (found.port, found.max_open, found.access_log) == (4321, 7, True)
    assert found.models == Path("here") and found.default_deadline_ms == 1000


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "anytime.toml"
    path.write_text('max_open = 3\nport = 4\naccess_log = true\nmodels = "zoo"\ndevice = "cpu"\n')
    found = load_settings(["--port", "5"], {"ANYTIME_CONFIG": str(path), "ANYTIME_MAX_OPEN": "7"})
    assert (found.port, found.max_open, found.access_log, found.device) == (5, 7, True, "cpu")
    assert found.models == tmp_path / "zoo"
    assert load_settings(["--config", str(path)], {"ANYTIME_CONFIG": "nowhere"}).max_open == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_opn = 3", "max_opn is no setting; did you mean max_open?"),
        ("config = 'other.toml'", "config is no setting"),
        ("[server]\nport = 1", "server is no setting"),
        ("max_open = 0", "max_open 0: it must be at least 1\n"),
        ("port = ", "cannot be read as TOML"),
        ("host = 5", "host 5: give text in quotes\n"),
        ("port = 1.5", "port 1.5: give a whole number\n"),
        ("keys = 5", "keys 5: give a path\n"),
        ("keys = ''", "keys '': it is empty; give a path, or leave it out\n"),
        ("port = " + "[" * 5000, "nested deeper than Python reads"),
        ("max_open = true", "max_open True: it is not true or false; give what"),
    ],
)
def test_a_wrong_line_of_the_file_is_named_and_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "anytime.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        load_settings(["--config", str(path)], {})
    error = capsys.readouterr().err
    assert caught.value.code == 2 and str(path) in error and words in error


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings([], {"ANYTIME_CONFIG": "nowhere.toml"})
    assert capsys.readouterr().err == "python -m server: there is no file nowhere.toml\n"


def test_the_documented_table_is_that_of_the_settings() -> None:
    document = (ROOT / "docs" / "operations.md").read_text()
    assert updated(document) == document, "run `python -m server settings --update docs/operations.md`"
    assert document.count(settings_table()) == 1


def test_the_limits_of_the_documentation_are_the_defaults() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    told = re.findall(r"`--([a-z-]+)` (?:\(([\d,]+)\)|([\d,]+)( MiB)?)", text)
    defaults = Settings().model_dump()
    assert len(told) >= 13
    for name, in_brackets, number, unit in told:
        value = int((in_brackets or number).replace(",", "")) * (2**20 if unit else 1)
        assert value == defaults[name.replace("-", "_")], name


def test_the_table_in_a_document_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"before\n\n{HEAD}\n|---|\n| old |\n\nafter | that\n")
    assert main(["--update", str(path)]) == 0
    assert path.read_text() == f"before\n\n{settings_table()}\n\nafter | that\n"


def test_an_empty_variable_names_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    for name, sentence in (
        ("CONFIG", "ANYTIME_CONFIG is empty; name a file"),
        ("KEYS", "ANYTIME_KEYS '': it is empty; "),
    ):
        with pytest.raises(SystemExit) as caught:
            load_settings([], {f"ANYTIME_{name}": ""})
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(f"python -m server: {sentence}")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings([], {}).port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "99999"],
        ["--max-open", "0"],
        ["--default-deadline-ms", "-1"],
        ["--default-deadline-ms", "nan"],
        ["--traffic-cap", "many"],
        ["--traffic-cap", "5:0"],
        ["--log-level", "loud"],
        ["--executor", "fast"],
        ["--device", "gpu"],
        ["--device", "cpu,auto"],
        ["--device", "cuda,cuda:1"],
        ["--device", "cuda:0,cuda:0"],
        ["--device", "cpu,"],
        ["--nothing"],
    ],
)
def test_a_wrong_setting_is_named_and_ends_with_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(argv, {})
    assert caught.value.code == 2 and argv[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--max-open", "-3"], "--max-open '-3': it must be at least 1"),
        (["--max-open", "5.5"], "--max-open '5.5': give a whole number"),
        (["--max-unfinished-bytes", "1"], "--max-unfinished-bytes '1': it must be at least 1048576"),
        (["--port", "99999"], "--port '99999': it may be at most 65535"),
        (["--unread-timeout-s", "2147484"], "--unread-timeout-s '2147484': it may be at most 2147483"),
        (["--max-decode-ms", "1e300"], "--max-decode-ms '1e300': it may be at most 86400000"),
        (["--max-pixels", "1" + 18 * "0"], "--max-pixels '1000000000000000000': it may be at most 1099511627776"),
        (["--drain-ms", "soon"], "--drain-ms 'soon': give a number"),
        (["--drain-ms", "nan"], "--drain-ms 'nan': give a finite number"),
        (["--idle-timeout-s", "0"], "--idle-timeout-s '0': it must be above 0"),
        (["--log-level", "loud"], "--log-level 'loud': it may be debug, info, warning or error"),
        (["--keys", ""], "--keys '': it is empty; give a path, or leave it out"),
        (["--traffic-cap", "16:²"], "--traffic-cap '16:²': '16:²' is not OPEN_REQUESTS:DEEPEST_EXIT"),
        (["--traffic-cap", "16"], "--traffic-cap '16': '16' is not OPEN_REQUESTS:DEEPEST_EXIT, for example 16:3"),
        (["--device", "cuda:0,cuda:00"], "--device 'cuda:0,cuda:00': cuda:0 is named 2 times; one worker uses all"),
    ],
)
def test_a_wrong_setting_is_told_what_to_give(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(argv, {})
    assert capsys.readouterr().err.startswith(f"python -m server: {sentence}")


def test_every_limit_of_a_number_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """No sentence is one of pydantic's own."""
    for name, field in Settings.model_fields.items():
        for text in ("word", "-1e9", "1e18", "nan", "0.5"):
            with suppress(SystemExit):
                load_settings([] if field.annotation is bool else [flag(name), text], {f"ANYTIME_{name.upper()}": text})
            error = capsys.readouterr().err
            assert "Input should" not in error and "Value error" not in error


def test_the_longest_unread_timeout_is_one_that_the_system_takes() -> None:
    with socket.socket() as connection:
        limit_unread(Transport(connection), MAX_UNREAD_S)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * MAX_UNREAD_S


class Transport(asyncio.BaseTransport):
    """The transport of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__({"socket": connection})


def test_a_wrong_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--port", "1"], {"ANYTIME_THREADS": "all"})
    assert "ANYTIME_THREADS 'all': " in capsys.readouterr().err


def test_links_to_a_service_of_kubernetes_are_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    address = "tcp://10.0.0.1:80"
    links = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": address}
    links |= {
        "PORT_80_TCP": address,
        "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings([], {f"ANYTIME_{name}": value for name, value in links.items()}) == load_settings([], {})
    assert capsys.readouterr().err == ""
    assert load_settings([], {"ANYTIME_PORT": "9000", "ANYTIME_SERVICE_HOST": "10.0.0.1"}).port == 9000


def test_a_misspelt_variable_is_named_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_settings([], {"ANYTIME_MAX_OPN": "7"}) == load_settings([], {})
    assert "ANYTIME_MAX_OPN is no setting and does nothing; did you mean ANYTIME_MAX_OPEN?" in capsys.readouterr().err


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"], {})
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(name in text for name in ("--host", "--max-deadline-ms", "--shared-memory-bytes", "--executor"))


def test_a_number_of_a_gpu_may_have_zeros_in_front() -> None:
    assert load_settings(["--device", "cuda:01,cuda:00"], {}).devices == ("cuda:1", "cuda:0")


@pytest.mark.parametrize("text", ["auto", "cuda", "cpu,cpu", "cuda:0, cuda:11,cpu"])
def test_devices(text: str) -> None:
    assert load_settings(["--device", text], {}).devices == tuple(text.replace(" ", "").split(","))


def test_the_traffic_cap() -> None:
    assert parse_traffic_cap("16:3, 32:2") == ((16, 3), (32, 2))
    assert parse_traffic_cap("") == ()
