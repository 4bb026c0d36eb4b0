"""The health check of a container asks where the server listens, by its flags, its environment and its file."""

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server import health
from server.settings import Settings


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (b"/venv/bin/python\0-m\0server\0", []),
        (b"/venv/bin/python\0-m\0server\0--port\09000\0", ["--port", "9000"]),
        (b"/sbin/docker-init\0--\0/venv/bin/python\0-m\0server\0--root-path\0/a\0", ["--root-path", "/a"]),
        (b"sleep\01\0", []),
        (b"", []),
    ],
)
def test_the_flags_of_the_server_are_read_from_the_first_process(command: bytes, flags: list[str]) -> None:
    assert health.server_flags(command) == flags


def test_a_server_is_asked_at_its_own_port(
    live_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = urlsplit(live_url).port
    monkeypatch.setenv("ANYTIME_HOST", "0.0.0.0")
    monkeypatch.setattr(health, "FIRST_PROCESS", tmp_path / "cmdline")
    (tmp_path / "cmdline").write_bytes(f"python\0-m\0server\0--port\0{port}\0".encode())
    assert health.main() == 0
    (tmp_path / "cmdline").unlink()
    monkeypatch.setenv("ANYTIME_PORT", str(port))
    assert health.main() == 0
    monkeypatch.setenv("ANYTIME_TLS_CERTIFICATE", "certificate.pem")
    assert health.main() == 1  # this server does not speak TLS
    assert "does not answer" in capfd.readouterr().err


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_https_is_asked_where_there_is_a_certificate(status: int, ready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Answered:
        def __init__(self, host: str, port: int, **_: object) -> None:
            self.status = status
            asked.append((host, port))

        def request(self, method: str, path: str) -> None:
            asked.append((method, path))

        def getresponse(self) -> "Answered":
            return self

        def close(self) -> None:
            pass

    monkeypatch.setattr(http.client, "HTTPSConnection", Answered)
    settings = Settings(host="::", port=8443, tls_certificate=Path("certificate.pem"), tls_key=Path("key.pem"))
    assert health.ready(settings) is ready
    assert asked == [("::1", 8443), ("GET", "/health/ready")]
