"""Trusted proxies: the addresses whose X-Forwarded-* and X-Request-Start headers the server believes. Pure."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The proxies of the setting `trusted_proxies`."""

    def __init__(self, networks: str) -> None:
        self._networks = parse_networks(networks)
        self._trusts = lru_cache(maxsize=256)(self._contains)

    def trusts(self, address: str) -> bool:
        return bool(self._networks) and self._trusts(address)

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """The client's address: the last one in the `X-Forwarded-For` headers that is not a trusted proxy's.

        Each proxy appends the address that the request came from, so only the entries that trusted proxies appended are
        reliable. The search ends at an entry that is not an address. `peer`: the address at the other end of the
        connection.
        """
        client = peer
        for text in reversed(",".join(forwarded).split(",")):
            if not self.trusts(client):
                break
            address = parse_client_address(text)
            if address is None:
                break
            client = address
        return client

    def _contains(self, address: str) -> bool:
        found = parse_client_address(address)
        return found is not None and any(ipaddress.ip_address(found) in network for network in self._networks)


def parse_networks(text: str) -> tuple[Network, ...]:
    """'10.0.0.0/8, ::1' -> the networks. Raises ValueError."""
    networks: list[Network] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as error:
            raise ValueError(f"{error}; give addresses or networks such as 10.0.0.7 or 10.0.0.0/8") from None
    return tuple(networks)


def request_start_s(text: str) -> float | None:
    """'t=1700000000.25', the value of `X-Request-Start`, -> Unix seconds; None if it says none."""
    found = re.fullmatch(r"(?:t=)?(\d{1,12}(?:\.\d{1,9})?)", text.strip(), re.ASCII)
    return float(found[1]) if found else None


def parse_client_address(text: str) -> str | None:
    """The address in '192.0.2.1', '192.0.2.1:80', '2001:db8::1' or '[2001:db8::1]:80'; None if there is none. IPv4
    addresses that are written as IPv6 ones become IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
