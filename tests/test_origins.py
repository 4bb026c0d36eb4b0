"""Which names of the server and which pages are allowed."""

import pytest

from server.access.origins import Origins, parse_authority, parse_hosts, parse_origin, parse_origins
from server.errors import ForbiddenError, InvalidError, MisdirectedError


def origins(hosts: str = "", allowed: str = "", listens_on: str = "127.0.0.1") -> Origins:
    return Origins(hosts, allowed, (listens_on,), own_name="Robot7.fleet.example")


def takes_host(found: Origins, host: str) -> bool:
    try:
        found.check_host([host], "1.1")
    except MisdirectedError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "local", "shared"),
    [
        ("localhost:8000", True, True),
        ("LocalHost.", True, True),
        ("demo.localhost", True, True),
        ("127.0.0.1:8000", True, True),
        ("127.8.9.1", True, True),
        ("[::1]:8000", True, True),
        ("192.0.2.7:8000", True, True),  # a robot, a pod, a load balancer's probe
        ("[2001:db8::7]", True, True),
        ("0.0.0.0:8000", True, True),
        ("server:8000", False, True),  # a service of docker compose
        ("anytime.default.svc.cluster.local", False, True),
        ("robot.internal", False, True),
        ("robot.home.arpa", False, True),
        ("robot7.fleet.example", False, True),
        ("rebound.test", False, False),
        ("localhost.rebound.test", False, False),
        ("127.0.0.1.rebound.test", False, False),
        ("notlocalhost.test", False, False),
        ("xlocal.test", False, False),
        ("1.2.3", False, False),
    ],
)
def test_names_that_a_stranger_can_own_are_refused(host: str, local: bool, shared: bool) -> None:
    """`local`: on a server that its own machine alone reaches; `shared`: on one that others reach."""
    assert takes_host(origins(), host) is local
    assert takes_host(origins(listens_on="localhost"), host) is local
    assert takes_host(origins(listens_on="0.0.0.0"), host) is shared
    assert takes_host(origins(listens_on="::"), host) is shared


@pytest.mark.parametrize(
    ("hosts", "host", "taken"),
    [
        ("anytime.example", "anytime.example:443", True),
        ("Anytime.Example, b.example", "ANYTIME.example", True),
        ("anytime.example", "www.anytime.example", False),
        ("*.anytime.example", "www.anytime.example", True),
        ("*.anytime.example", "anytime.example", False),
        ("*.anytime.example", "notanytime.example", False),
        ("*", "rebound.test", True),
        ("anytime.example", "rebound.test", False),
    ],
)
def test_configured_names_are_allowed(hosts: str, host: str, taken: bool) -> None:
    assert takes_host(origins(hosts), host) is taken


def test_the_name_that_the_server_listens_on_is_allowed() -> None:
    assert takes_host(origins(listens_on="anytime.example"), "anytime.example:8000")


def test_a_refused_name_is_told_with_the_setting() -> None:
    with pytest.raises(MisdirectedError, match=r"--allowed-hosts rebound\.test") as caught:
        origins().check_host(["rebound.test:8000"], "1.1")
    assert caught.value.status == 421


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["localhost", "localhost"],
        *([text] for text in ("", ".", "a b", "user@localhost", "localhost:", "localhost:port", "localhost:123456")),
        *([text] for text in ("[::1", "localhost/", "localhost,x", "http://localhost", "ex\xe4mple")),
    ],
)
def test_there_is_one_well_formed_host(given: list[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        origins("*").check_host(given, "1.1")
    assert (caught.value.status, caught.value.code) == (400, "bad_host")


def test_only_http_1_0_may_lack_a_host() -> None:
    assert origins().check_host([], "1.0") is None
    with pytest.raises(InvalidError):
        origins().check_host(["a", "b"], "1.0")


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "taken"),
    [
        ("http://localhost:8000", "localhost:8000", "", True),
        ("http://LOCALHOST:8000", "localhost:8000", "", True),
        ("http://[::1]:8000", "[::1]:8000", "", True),
        ("https://anytime.example", "anytime.example", "", True),  # behind a proxy that ends TLS
        ("https://anytime.example", "anytime.example:443", "", True),
        ("http://localhost:3000", "localhost:8000", "", False),
        ("http://localhost", "localhost:8000", "", False),
        ("http://127.0.0.1:8000", "localhost:8000", "", False),
        ("http://app.example", "localhost:8000", "", False),
        ("null", "localhost:8000", "", False),
        ("", "localhost:8000", "", False),
        ("chrome-extension://abc", "localhost:8000", "", False),
        ("https://app.example", "localhost:8000", "https://app.example", True),
        ("https://App.example", "localhost:8000", "https://other.example, https://APP.example", True),
        ("http://app.example", "localhost:8000", "https://app.example", False),
        ("https://app.example.test", "localhost:8000", "https://app.example", False),
        ("null", "localhost:8000", "null", True),
        ("null", "localhost:8000", "*", True),
        ("https://any.example", "localhost:8000", "*", True),
    ],
)
def test_pages_of_other_origins_are_refused(origin: str, host: str, allowed: str, taken: bool) -> None:
    found = origins(allowed=allowed)
    authority = parse_authority(host)
    if taken:
        found.check_origin(origin, authority)
        return
    with pytest.raises(ForbiddenError, match="--allowed-origins") as caught:
        found.check_origin(origin, authority)
    assert (caught.value.status, caught.value.code) == (403, "foreign_origin")


def test_without_a_host_no_page_is_the_same_origin() -> None:
    with pytest.raises(ForbiddenError):
        origins().check_origin("http://localhost", None)


def test_answers_are_shared_with_configured_origins_alone() -> None:
    assert not origins().shares and origins(allowed="*").shares
    found = origins(allowed="https://app.example")
    assert found.shares_with("https://app.example") and not found.shares_with("http://localhost:8000")


def test_origins_are_a_scheme_and_an_authority() -> None:
    found = parse_origin("HTTPS://App.Example:8443")
    assert found is not None and (found[0], found[1].name, found[1].port) == ("https", "app.example", 8443)
    assert [parse_origin(text) for text in ("null", "app.example", "https://", "https://a/b")] == [None] * 4


@pytest.mark.parametrize("text", ["http://a.example", "a.example/", "*example", "a.*", "a b", "a.example:80"])
def test_a_wrong_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit; give names"):
        parse_hosts(f"b.example, {text}")


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "https://*.example"])
def test_a_wrong_list_of_origins_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit; give origins"):
        parse_origins(f"https://b.example,{text}")


def test_lists_may_be_empty_and_have_spaces() -> None:
    assert parse_hosts(" , ") == () and parse_hosts("A.example , *") == ("a.example", "*")
    assert parse_origins("null, HTTPS://a") == ("null", "https://a")
