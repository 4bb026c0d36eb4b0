"""By which names a server may be called, and which web pages may send it requests. Pure.

A browser sends requests for any page that it shows, to any address that it reaches, also to a server on the visitor's
own machine. Two headers tell what happens. `Host` is the name by which the server was called: strangers can point a
name of theirs at any address (DNS rebinding), and the browser then takes the server for a part of their site. `Origin`
is the site of the page. Both are checked for every request and every WebSocket; SECURITY.md has the reasons.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from server.errors import ForbiddenError, InvalidError, MisdirectedError

ANY = "*"
LOOPBACK = "localhost"
"""Browsers resolve this name and its subdomains to the loopback address, without DNS."""

UNOWNED = ("local", "internal", "home.arpa", "svc")
"""The domains of private networks and of Kubernetes' services: nobody on the Internet can own a name in them (RFC 6762,
RFC 8375)."""

PORTS = {"http": 80, "https": 443}
_NAME = r"[a-z0-9._~-]+"
_AUTHORITY = re.compile(rf"({_NAME}|\[[0-9a-f:.]+\])(?::(\d{{1,5}}))?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.ASCII | re.IGNORECASE)
_SHOWN = 100  # characters of a header in a sentence


@dataclass(frozen=True)
class Authority:
    """Where a URL leads: a host's name in small letters, or its address, and a port; None: the scheme's own."""

    name: str
    port: int | None
    is_address: bool

    def at(self, scheme: str) -> tuple[str, int | None]:
        """The name, and the port that a URL of this scheme leads to."""
        return self.name, self.port or PORTS.get(scheme)


@lru_cache(maxsize=256)
def parse_authority(text: str) -> Authority | None:
    """Parse 'Example.org:8000'. Returns None if the text is not an authority."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name = found[1].lower().removesuffix(".")
    return Authority(name, int(found[2]) if found[2] else None, _is_address(name)) if name else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def parse_origin(text: str) -> tuple[str, Authority] | None:
    """'https://example.org' -> the scheme and the authority; None if the text is no such origin, as "null" is."""
    found = _ORIGIN.fullmatch(text)
    authority = parse_authority(found[2]) if found else None
    return (found[1].lower(), authority) if found and authority else None


class Origins:
    """The names and the pages that are allowed.

    `hosts`, `origins`: the settings `allowed_hosts` and `allowed_origins`. `listens_on`: the address that the server
    listens on. `own_name`: the name of the machine.
    """

    def __init__(self, hosts: str, origins: str, listens_on: Sequence[str], own_name: str) -> None:
        configured = parse_hosts(hosts)
        self._names = {
            LOOPBACK,
            *(host.lower() for host in listens_on),
            *(name for name in configured if not name.startswith(ANY)),
        }
        self._domains = [f".{LOOPBACK}", *(name.removeprefix(ANY) for name in configured if name.startswith("*."))]
        self._any_host = ANY in configured
        self._origins = set(parse_origins(origins))
        self._shared = not all(map(_is_loopback, listens_on))
        if self._shared:
            self._names.add(own_name.lower())
            self._domains += [f".{domain}" for domain in UNOWNED]

    def check_host(self, given: Sequence[str], http_version: str) -> Authority | None:
        """The authority that the `Host` headers name; None for HTTP/1.0 without one. Raises InvalidError unless there
        is one well-formed header, and MisdirectedError if its name is not allowed."""
        if not given and http_version == "1.0":
            return None
        found = parse_authority(given[0]) if len(given) == 1 else None
        if found is None:
            shown = f"is {given[0][:_SHOWN]!r}" if len(given) == 1 else f"comes {len(given)} times"
            raise InvalidError(f"the Host header {shown}; send one, as NAME or NAME:PORT (RFC 9112)", "bad_host")
        if not (self._any_host or self._allows(found)):
            raise MisdirectedError(
                f"this server is not called {found.name[:_SHOWN]!r}; use its IP address or localhost, or start it with "
                f"--allowed-hosts {found.name[:_SHOWN]}",
                "unknown_host",
            )
        return found

    def _allows(self, host: Authority) -> bool:
        name = host.name
        if name in self._names or name.endswith(tuple(self._domains)) or host.is_address:
            return True
        return self._shared and "." not in name

    def check_origin(self, origin: str, host: Authority | None) -> None:
        """Raises ForbiddenError if a page of `origin` may not ask the server that it calls `host`."""
        found = parse_origin(origin)
        if found is not None and host is not None and found[1].at(found[0]) == host.at(found[0]):
            return
        if not self.shares_with(origin):
            raise ForbiddenError(
                f"pages of {origin[:_SHOWN]!r} may not use this server; start it with --allowed-origins "
                f"{origin[:_SHOWN]} if they should, and let a proxy pass the Host header on",
                "foreign_origin",
            )

    def shares_with(self, origin: str) -> bool:
        """Whether pages of this other origin may read the answers."""
        return ANY in self._origins or origin.lower() in self._origins

    @property
    def shares(self) -> bool:
        """Whether pages of any other origin may read the answers."""
        return bool(self._origins)


def _is_loopback(address: str) -> bool:
    if address.lower() == LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def parse_hosts(text: str) -> tuple[str, ...]:
    """'anytime.example, *.example.org' -> the names in small letters. Raises ValueError."""
    remedy = "give names such as anytime.example or *.example.org, or * for all"
    return _listed(text, lambda name: name == ANY or re.fullmatch(rf"(\*\.)?{_NAME}", name) is not None, remedy)


def parse_origins(text: str) -> tuple[str, ...]:
    """'https://app.example' -> the origins in small letters. Raises ValueError."""
    remedy = "give origins such as https://app.example, without a path, or * for all"
    return _listed(text, lambda origin: origin in (ANY, "null") or parse_origin(origin) is not None, remedy)


def _listed(text: str, fits: Callable[[str], bool], remedy: str) -> tuple[str, ...]:
    parts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for part in parts:
        if not fits(part):
            raise ValueError(f"{part!r} does not fit; {remedy}")
    return parts
