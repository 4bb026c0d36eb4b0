"""The proxy through which a server is reached, and the certificates to trust. The environment names both."""

import ipaddress
import os
import ssl
import urllib.request
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import httpx

_SOCKS_PACKAGES = ("socksio", "python_socks")
"""What httpx and websockets need to speak to a SOCKS proxy."""


def find_proxy(url: httpx.URL) -> str | None:
    """The URL of the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names for `url`, unless NO_PROXY excepts its host.

    None for a server on this machine, which no proxy could reach. Raises ValueError if it is a SOCKS proxy and the
    `socks` extra is not installed.
    """
    if is_loopback(url.host) or urllib.request.proxy_bypass(url.host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get(url.scheme) or named.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if proxy.startswith("socks") and not all(find_spec(package) for package in _SOCKS_PACKAGES):
        raise ValueError(
            f"the environment names the proxy {proxy} for {url.host}; for SOCKS, pip install 'adpc-client[socks]', or "
            f"set NO_PROXY={url.host} to do without a proxy"
        )
    return proxy


def tls_context(scheme: str) -> ssl.SSLContext:
    """The certificates to trust, which SSL_CERT_FILE or SSL_CERT_DIR may replace. None are loaded for http.

    Raises ValueError if one of them names nothing.
    """
    if scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    places = tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    for name, place in zip(("SSL_CERT_FILE", "SSL_CERT_DIR"), places, strict=True):
        if place and not Path(place).exists():
            raise ValueError(f"{name} names {place}, which does not exist; correct it, or unset it")
    return _loaded_context(places)


@lru_cache
def _loaded_context(places: tuple[str | None, ...]) -> ssl.SSLContext:
    """One context for each setting of the environment: to load all certificates takes a while."""
    return httpx.create_ssl_context()


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
