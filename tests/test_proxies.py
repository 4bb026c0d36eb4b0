"""Whose word counts about where a request comes from."""

import pytest

from server.access.proxies import TrustedProxies, parse_networks


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("", "10.0.0.1", ["192.0.2.1"], "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", "10.0.0.2", ["192.0.2.1"], "10.0.0.2"),
        ("10.0.0.0/8", "10.0.0.1", ["198.51.100.1, 192.0.2.1"], "192.0.2.1"),  # the client claims the first
        ("10.0.0.0/8", "10.0.0.1", ["198.51.100.1", "192.0.2.1, 10.9.9.9"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ("10.0.0.0/8", "10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.0/8", "10.0.0.1", ["2001:DB8::0001"], "2001:db8::1"),
        ("10.0.0.0/8", "10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", ["198.51.100.1, nonsense, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
        ("10.0.0.0/8, ::1", "::1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.0/8", "unknown", ["192.0.2.1"], "unknown"),
    ],
)
def test_only_what_trusted_proxies_appended_counts(trusted: str, peer: str, forwarded: list[str], client: str) -> None:
    assert TrustedProxies(trusted).client(peer, forwarded) == client


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33"])
def test_a_wrong_list_of_proxies_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give addresses or networks"):
        parse_networks(f"::1, {text}")
