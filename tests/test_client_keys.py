"""API keys and other headers of the client and the command `adpc`, against a server that asks for keys."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import live
import pytest
import tiny
from adpc_client import AsyncClient, Client, ReplyError
from adpc_client.__main__ import main
from adpc_client.load import measure
from adpc_client.load.plan import LoadTestPlan, PlannedRequest
from adpc_client.load.transport import LoadTarget
from adpc_client.transport import Endpoint
from live import Live, ScriptedWorker, photo
from scripted_server import Talk, end, scripted

from server.access.keys import key_digest

KEY = "robot.a-secret-of-the-robot"
BEARER = f"Bearer {KEY}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, ScriptedWorker]]:
    """A server with one key, and its worker."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys.toml").write_text(f'[keys.robot]\nsha256 = "{key_digest(KEY)}"\n')
    models = live.write_configs(tmp_path_factory.mktemp("models"), (tiny.SEGMENTATION,))
    with live.scripted(models, keys=folder / "keys.toml") as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        yield server, worker


@pytest.fixture
def url(guarded: tuple[Live, ScriptedWorker], tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(photo())
    return f"http://127.0.0.1:{guarded[0].port}"


COMMANDS = {
    "models": [],
    "predict": ["photo.png"],
    "stream": ["photo.png"],
    "load": ["--image", "photo.png", "--count", "1"],
    "load of streams": ["--image", "photo.png", "--count", "1", "--protocol", "stream"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("by", ["the environment", "a header"])
def test_every_command_sends_the_key(guarded, url, monkeypatch, name, by):
    command = [name.split()[0], *COMMANDS[name], "--url", url, "--json"]
    if by == "the environment":
        monkeypatch.setenv("ADPC_KEY", f"{KEY}\n")  # as $(cat FILE) would not leave it, but an env file may
    else:
        command += ["--header", f"Authorization: {BEARER}"]
    shown = io.StringIO()

    def run():
        with redirect_stdout(shown), redirect_stderr(shown):
            return main(command)

    call = live.Later(run)
    if name != "models":
        spec = guarded[1].hear_job()
        assert spec.client == "robot"
        guarded[1].finish(spec)
    assert call.result() == 0, shown.getvalue()


def test_without_a_key_the_command_says_what_to_send_and_a_wrong_key_stays_secret(url, monkeypatch, capsys):
    assert main(["models", "--url", url]) == 1
    assert "send the header Authorization: Bearer KEY" in capsys.readouterr().err
    monkeypatch.setenv("ADPC_KEY", "robot.wrong")
    assert main(["models", "--url", url]) == 1
    assert "wrong" not in capsys.readouterr().err


@pytest.mark.usefixtures("url")
def test_a_header_of_the_command_line_replaces_the_key_of_the_environment(monkeypatch):
    seen = []

    def script(talk: Talk) -> None:
        fields = talk.connection.request.headers
        seen.append((fields.get_all("Authorization"), fields.get_all("X-Robot")))
        talk.exit(4)
        talk.say(end(talk.id, 4))

    monkeypatch.setenv("ADPC_KEY", "other")
    with scripted(script) as server:
        command = ["stream", "photo.png", "--url", server.url, "--header", f"authorization:{BEARER}"]
        assert main([*command, "--header", "X-Robot: 7"]) == 0
    assert seen == [([BEARER], ["7"])]


def test_both_clients_send_headers_over_http(url):
    headers = {"Authorization": BEARER}

    async def names() -> list[str]:
        async with AsyncClient(url, headers=headers) as client:
            return [model.name for model in await client.models()]

    with Client(url, headers=headers) as client:
        assert [model.name for model in client.models()] == asyncio.run(names()) == ["tiny-segmentation"]
    with Client(url) as client, pytest.raises(ReplyError, match="no API key"):
        client.models()


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({"Authorization": f"{BEARER}\n"}, "the header Authorization has a line break .* strip it"),
        ({"Authorization": f"{BEARER}ü"}, "a character outside ASCII"),
        ({"Author ization": BEARER}, "'Author ization' is not the name of a header"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_and_its_value_stays_secret(headers, complaint):
    for make in (lambda: Client(headers=headers), lambda: AsyncClient(headers=headers)):
        with pytest.raises(ValueError, match=complaint) as raised:
            make()
        assert KEY not in str(raised.value)
    plan = LoadTestPlan([PlannedRequest(0.0)], [b""])
    with pytest.raises(ValueError, match=complaint):
        asyncio.run(measure("http://127.0.0.1:9", plan, headers=headers))


def test_a_malformed_header_is_wrong_usage_and_is_not_repeated(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["models", "--header", BEARER])
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert "a header must be 'NAME: VALUE', for example 'Authorization: Bearer KEY'" in shown and KEY not in shown


def test_what_holds_a_key_does_not_show_it():
    headers = {"Authorization": BEARER}
    target = LoadTarget("http://server", "127.0.0.1", None, {}, headers)
    assert KEY not in f"{Endpoint('http://server', headers)} {target}"
