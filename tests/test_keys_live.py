"""A live server with API keys, HTTPS and an address for operators, against a worker that the tests play."""

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import live
import pytest
import tiny
from live import Later, Live, ScriptedWorker, photo
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server.__main__ import tls_context
from server.access.keys import key_digest
from server.protocols.tls import TlsHandshake

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl is installed, which makes the certificate")

KEYS = {name: f"{name}.secret-of-{name}" for name in ("robot", "camera", "spender", "guest")}
TERMS = {
    "robot": "max_priority = 1\nmax_deadline_ms = 20000",
    "camera": "requests_per_second = 0.001\nburst = 1",
    "spender": "gmacs_per_second = 1e-9\ngmacs_burst = 1e-9",
    "guest": "max_priority = 0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, its key, and a file of API keys."""
    found = tmp_path_factory.mktemp("access")
    (found / "keys.toml").write_text(
        "".join(f'[keys.{name}]\nsha256 = "{key_digest(key)}"\n{TERMS[name]}\n' for name, key in KEYS.items())
    )
    made = ["-keyout", found / "key.pem", "-out", found / "certificate.pem", "-subj", "/CN=localhost"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([str(OPENSSL), "req", *kind, *names, *made], check=True, capture_output=True)
    return found


class Access:
    """A server, its worker, and clients of the public address and of the operators' one."""

    def __init__(self, server: Live, worker: ScriptedWorker, certificate: Path) -> None:
        self.server, self.worker = server, worker
        self.tls = ssl.create_default_context(cafile=certificate)
        port = server.host.app.guard.admin_port  # type: ignore[attr-defined]
        self.public, self.admin = f"https://127.0.0.1:{server.port}", f"https://127.0.0.1:{port}"
        self.http = httpx.Client(verify=self.tls, timeout=live.PATIENCE_S)

    def predict(self, name: str, **query: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEYS[name]}", "X-Request-Id": "mine"}
        return self.http.post(f"{self.public}/v1/predict", params=query, content=photo(), headers=headers)

    def served(self, name: str, **query: object) -> httpx.Response:
        """The answer to a request that the worker computes. Its share of the device is its key's."""
        call = Later(lambda: self.predict(name, **query))
        spec = self.worker.hear_job()
        assert spec.client == name
        self.worker.finish(spec)
        return call.result()


@pytest.fixture(scope="module")
def access(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    models = live.write_configs(tmp_path_factory.mktemp("models"), (tiny.SEGMENTATION,))
    files = {"keys": folder / "keys.toml", "tls_certificate": folder / "certificate.pem", "tls_key": folder / "key.pem"}
    with live.scripted(models, admin="127.0.0.1:0", trusted_proxies="127.0.0.1", **files) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        found = Access(server, worker, folder / "certificate.pem")
        server.wait_for(lambda: found.http.get(f"{found.public}/health/ready").status_code == 200)
        yield found
        found.http.close()


def test_metrics_and_docs_are_at_the_operators_address_alone(access: Access) -> None:
    for path in ("/metrics", "/docs", "/openapi.json", "/docs/swagger-ui.css"):
        statuses = [access.http.get(f"{address}{path}").status_code for address in (access.public, access.admin)]
        assert statuses == [404, 200]
    assert access.http.get(f"{access.admin}/v1/models").status_code == 401


def test_a_key_has_its_own_requests(access: Access) -> None:
    answer = access.served("robot", deadline_ms=25_000)
    assert (answer.status_code, answer.json()["deadline_ms"]) == (200, 20_000)
    statuses = []
    for key in (*KEYS.values(), "robot.wrong", None):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        statuses.append(access.http.get(f"{access.public}/v1/requests/mine", headers=headers).status_code)
    assert statuses == [200, 404, 404, 404, 401, 401]


def test_a_key_may_do_what_its_terms_say(access: Access) -> None:
    refused = access.predict("robot", priority=2)
    assert (refused.status_code, refused.json()["code"]) == (403, "key_priority")
    assert access.served("camera").status_code == 200
    refused = access.predict("camera")
    assert (refused.status_code, refused.json()["code"]) == (429, "key_rate")
    assert 990 <= int(refused.headers["retry-after"]) <= 1000


def test_a_request_that_names_no_priority_has_at_most_that_of_its_key(access: Access) -> None:
    call = Later(lambda: access.predict("guest"))
    spec = access.worker.hear_job()
    assert spec.priority == 0
    access.worker.finish(spec)
    assert call.result().status_code == 200


def test_what_waited_too_long_at_a_proxy_is_stale(access: Access) -> None:
    headers = {"Authorization": f"Bearer {KEYS['robot']}", "X-Request-Start": "t=1"}
    refused = access.http.post(f"{access.public}/v1/predict", content=photo(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (504, "stale")


def test_a_request_counts_from_when_it_came_to_a_proxy(access: Access) -> None:
    headers = {"Authorization": f"Bearer {KEYS['robot']}", "X-Request-Start": f"t={time.time() - 5}"}
    call = Later(lambda: access.http.post(f"{access.public}/v1/predict", content=photo(), headers=headers))
    spec = access.worker.hear_job()
    assert spec.arrived_s <= time.monotonic() - 5
    access.worker.finish(spec)
    assert call.result().json()["elapsed_ms"] >= 5000


def test_what_was_computed_is_spent(access: Access) -> None:
    assert access.served("spender").status_code == 200
    refused = access.predict("spender")
    assert (refused.status_code, refused.json()["code"]) == (429, "key_budget")


def test_a_key_opens_a_socket_as_a_subprotocol(access: Access, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{access.public.replace('https', 'wss')}/v1/stream"
    offered = ["anytime", f"anytime.key.{KEYS['robot']}"]
    with connect(url, ssl=access.tls, subprotocols=offered) as connection:  # type: ignore[arg-type]
        assert connection.subprotocol == "anytime"
        connection.send('{"type": "predict", "id": "a"}')
        connection.send(photo())
        spec = access.worker.hear_job()
        assert spec.client == "robot"
        access.worker.finish(spec)
        connection.recv()
    with pytest.raises(InvalidStatus) as caught:
        connect(url, ssl=access.tls)
    assert caught.value.response.status_code == 401
    assert not caplog.records  # a refusal is no fault of the server


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_handshake_has_its_time_and_is_tls(access: Access, sent: bytes) -> None:
    host = access.server.host
    connections = host.server.server_state.connections  # type: ignore[attr-defined]

    def handshakes() -> int:
        return sum(isinstance(connection, TlsHandshake) for connection in list(connections))

    with socket.create_connection(("127.0.0.1", access.server.port), timeout=live.PATIENCE_S) as client:
        client.sendall(sent)
        if not sent.startswith(b"GET"):
            access.server.wait_for(lambda: handshakes() == 1)
            sweep = host.app.state.gate.peers.sweep
            host.loop.call_soon_threadsafe(sweep, time.monotonic() + 9.0)
            assert access.http.get(f"{access.public}/health/live").status_code == 200  # the sweep is over
            assert handshakes() == 1
            host.loop.call_soon_threadsafe(sweep, time.monotonic() + 10.1)
        with suppress(ConnectionResetError):
            while client.recv(1024):
                pass
    access.server.wait_for(lambda: handshakes() == 0)
    access.server.wait_for(lambda: len(host.app.state.gate.peers) == len(connections))  # each is counted once


def test_the_files_of_tls_belong_together(folder: Path) -> None:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    assert tls_context(None, None) is None
    tls_context(certificate, key)
    for wrong in ((certificate, None), (None, key)):
        with pytest.raises(ValueError, match="give both or neither"):
            tls_context(*wrong)
    for files in ((key, certificate), (certificate, folder / "none.pem"), (certificate, folder / "keys.toml")):
        with pytest.raises(ValueError, match=r"--tls-certificate .* and --tls-key"):
            tls_context(*files)
