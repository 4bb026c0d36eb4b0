"""Proxies and certificates of the environment: for what is far away, never for this machine, and named in errors."""

import importlib.util
import ssl
import urllib.request

import httpx
import pytest
from adpc_client import Client, ConnectionFailedError, proxy
from adpc_client.transport import Endpoint
from scripted_server import end, scripted
from websockets.exceptions import InvalidProxyMessage

FAR = httpx.URL("http://inference.example:8000")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without the proxies of the machine that tests; the test sets its own."""
    for name in urllib.request.getproxies_environment():
        for spelt in (name, name.upper()):
            monkeypatch.delenv(f"{spelt}_proxy", raising=False)
            monkeypatch.delenv(f"{spelt}_PROXY", raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"http_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"ALL_PROXY": "http://proxy:1"}, "http://proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1"}, None),  # for other URLs
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "other.example,localhost"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "inference.example"}, None),
    ],
)
def test_the_environment_names_the_proxy(environment, settings, found):
    for name, value in settings.items():
        environment(name, value)
    assert proxy.find_proxy(FAR) == found


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "api.localhost", "[::1]", "0.0.0.0"])
def test_no_proxy_stands_before_this_machine(environment, host):
    environment("HTTP_PROXY", "http://127.0.0.1:9")
    environment("ALL_PROXY", "socks5://127.0.0.1:9")
    assert proxy.find_proxy(httpx.URL(f"http://{host}:8000")) is None


def test_requests_to_this_machine_arrive_whatever_the_environment_says(environment):
    environment("ALL_PROXY", "socks5://127.0.0.1:9")
    environment("SSL_CERT_FILE", "/nowhere.pem")
    with scripted(lambda talk: talk.say(end(talk.id, 0))) as server, Client(server.url) as client:
        stream = client.stream(b"\xff\xd8\xff")
        assert list(stream) == [] and stream.end is not None


def test_socks_needs_its_packages(environment, monkeypatch):
    environment("ALL_PROXY", "socks5://proxy:1080")
    monkeypatch.setattr(proxy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"socks5://proxy:1080 .* pip install 'adpc-client\[socks\]'.* NO_PROXY="):
        Client(str(FAR))
    monkeypatch.setattr(proxy, "find_spec", importlib.util.find_spec)
    monkeypatch.setattr(proxy, "_SOCKS_PACKAGES", ("httpx",))
    assert proxy.find_proxy(FAR) == "socks5://proxy:1080"


@pytest.mark.parametrize(
    ("failure", "door"),
    [
        (httpx.ConnectError("refused"), "http_errors"),
        (httpx.ConnectTimeout("slow"), "http_errors"),
        (httpx.ProxyError("407"), "http_errors"),
        (InvalidProxyMessage("not HTTP"), "connect_errors"),
        (OSError("refused"), "connect_errors"),
        (TimeoutError(), "connect_errors"),
    ],
)
def test_what_fails_behind_a_proxy_names_it(environment, failure, door):
    environment("HTTP_PROXY", "http://proxy:3128")
    endpoint = Endpoint(str(FAR))
    with pytest.raises(ConnectionFailedError, match="through the proxy http://proxy:3128"), getattr(endpoint, door)():
        raise failure


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_gone_are_named(environment, name):
    environment(name, "/nowhere.pem")
    with pytest.raises(ValueError, match=rf"{name} names /nowhere\.pem, which does not exist"):
        Client("https://inference.example")
    assert Endpoint(str(FAR)).stream_tls is None


def test_both_doors_trust_the_same_certificates():
    endpoint = Endpoint("https://inference.example")
    assert endpoint.stream_tls is endpoint.tls and endpoint.tls.verify_mode is ssl.CERT_REQUIRED
    assert endpoint.tls.get_ca_certs()
