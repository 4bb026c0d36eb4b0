"""API keys: the file that names them, who a key belongs to, and what it may spend. docs/keys.md shows a file.

A key is NAME.SECRET, and the file holds the SHA-256 of it. The secret has 256 random bits, so that nobody finds it by
trying, however fast the hash is; a slow hash such as scrypt protects secrets that people choose, and would cost every
request its time.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import tomllib
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

from models.network.configs import GIGA
from models.reading import read_text, shallow
from models.validation import from_json, value
from server.access.bucket import Bucket
from server.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError
from server.requests.budget import Asked, Limit

logger = logging.getLogger("anytime.keys")

SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
"""The name of a key must not look like an address, because limits and budgets identify clients by either."""

DEFAULT_PRIORITY = 1
DEFAULT_BURST = 20

Rate = Annotated[float, Field(gt=0)]


@value(kw_only=True)
class KeyTerms:
    """What the file says of one key. None is no limit.

    `sha256`: the digest of the key in hexadecimal; several while a key is being replaced. `requests_per_second`, and
    how many at once: `burst`. `gmacs_per_second`: giga multiply-adds of computation, of which `gmacs_burst` at once (by
    default those of ten seconds). `max_priority`, `max_deadline_ms`: the greatest that a request gets.
    """

    sha256: str | tuple[str, ...]
    requests_per_second: Rate | None = None
    burst: Annotated[int, Field(ge=1)] | None = None
    gmacs_per_second: Rate | None = None
    gmacs_burst: Rate | None = None
    max_priority: Annotated[int, Field(ge=0, le=2)] = 2
    max_deadline_ms: Rate | None = None

    def __post_init__(self) -> None:
        if not self.digests or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in self.digests):
            raise PydanticCustomError("no_digest", "give the 64 digits that `python -m server keys new` prints")
        for rate, burst in (("requests_per_second", "burst"), ("gmacs_per_second", "gmacs_burst")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise PydanticCustomError("no_rate", f"{burst} limits nothing without {rate}; give both, or neither")

    @property
    def digests(self) -> tuple[str, ...]:
        return (self.sha256,) if isinstance(self.sha256, str) else self.sha256


@value(kw_only=True)
class KeyFile:
    """What a file of keys holds."""

    keys: dict[str, KeyTerms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keys:  # as it is while somebody writes it
            raise ValueError(
                "it holds no key, so that no client could send a request; make one: python -m server keys new NAME"
            )


class KeyAccount:
    """The remaining allowance of one key."""

    def __init__(self, name: str, terms: KeyTerms, now_s: float) -> None:
        self._name = name
        self.terms = terms
        self._burst = terms.burst or DEFAULT_BURST
        self._requests = self._gmacs = None
        if terms.requests_per_second is not None:
            self._requests = Bucket(terms.requests_per_second, self._burst, now_s)
        if terms.gmacs_per_second is not None:
            size = terms.gmacs_burst or 10 * terms.gmacs_per_second
            self._gmacs = Bucket(terms.gmacs_per_second, size, now_s)

    def admit(self, now_s: float) -> None:
        """Count one request. Raises TooManyRequestsError if the key has no request or no computation left."""
        terms = self.terms
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now_s)) > 0:
            rate = f"{terms.requests_per_second:g} requests a second and {self._burst} at once"
            sentence = f"key {self._name} may send {rate}; wait {wait_s:.2g} s before the next"
            raise TooManyRequestsError(sentence, "key_rate", wait_s)
        if self._gmacs is not None and (wait_s := self._gmacs.wait_s(0, now_s)) > 0:
            rate = f"{terms.gmacs_per_second:g} GMACs a second"
            sentence = f"key {self._name} has spent its {rate}; wait {wait_s:.2g} s before the next"
            raise TooManyRequestsError(sentence, "key_budget", wait_s)
        if self._requests is not None:
            self._requests.take(1, now_s)

    def spend(self, macs: float, now_s: float) -> None:
        """Note what was computed for a request."""
        if self._gmacs is not None:
            self._gmacs.take(macs / GIGA, now_s)


class KeyRing:
    """The keys of a file, which is read again when it has changed. A file that is broken then leaves the keys as they
    are. Raises ValueError, which names the file, if it is broken at first."""

    LOOK_S = 1.0
    """Seconds between two looks at the file."""

    def __init__(self, path: Path, now_s: float) -> None:
        self._path = path
        self._looked_s = now_s
        self._stamp = _stamp(path)
        self._accounts: dict[str, KeyAccount] = {}
        self._take(read_keys(path), now_s)

    def identify(self, key: str | None, now_s: float) -> str:
        """The name of a key. Raises UnauthorizedError if there is none or it is wrong."""
        self._look(now_s)
        if key is None:
            raise UnauthorizedError("the request has no API key; send the header Authorization: Bearer KEY", "no_key")
        name = key.partition(".")[0]
        digest = key_digest(key)
        known = self._accounts[name].terms.digests if name in self._accounts else ()
        if not any(hmac.compare_digest(digest, one) for one in known):
            raise UnauthorizedError("the API key is not known here; ask whoever runs the server for one", "bad_key")
        return name

    def admit(self, name: str, priority: int | None, now_s: float) -> int:
        """Count a request of the key. Returns its priority, of which it may name none. Raises UnauthorizedError if the
        key was taken from the file, ForbiddenError and TooManyRequestsError if it may not do this, or not now."""
        self._look(now_s)
        account = self._accounts.get(name)
        if account is None:
            raise UnauthorizedError(f"key {name} is no longer valid; ask whoever runs the server for one", "bad_key")
        greatest = account.terms.max_priority
        if priority is not None and priority > greatest:
            sentence = f"priority is {priority}, and key {name} may ask for at most {greatest}; ask for that or less"
            raise ForbiddenError(sentence, "key_priority")
        account.admit(now_s)
        return min(DEFAULT_PRIORITY, greatest) if priority is None else priority

    def spend(self, name: str, macs: float, now_s: float) -> None:
        """Note what was computed for a request of the key."""
        if name in self._accounts:
            self._accounts[name].spend(macs, now_s)

    def limits(self, asked: Asked) -> Iterator[Limit]:
        """A policy of the request: the greatest deadline of its key."""
        account = self._accounts.get(asked.client)
        if account is not None and account.terms.max_deadline_ms is not None:
            longest_ms = account.terms.max_deadline_ms
            yield Limit("key", f"key {asked.client} gets {longest_ms:g} ms at most", longest_ms / 1000)

    def _look(self, now_s: float) -> None:
        """Read the file again if it has changed since the last look."""
        if now_s - self._looked_s < self.LOOK_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._path), now_s)
        except ValueError as error:
            logger.error("the keys stay as they are: %s", error)  # noqa: TRY400 - a sentence, no traceback
        else:
            logger.info("%s was read again; keys: %d", self._path, len(self._accounts))

    def _take(self, file: KeyFile, now_s: float) -> None:
        """Replace the keys by those of `file`. A key whose terms are unchanged keeps its balance."""
        before, self._accounts = self._accounts, {}
        for name, terms in file.keys.items():
            known = before.get(name)
            kept = known is not None and known.terms == terms
            self._accounts[name] = known if kept and known is not None else KeyAccount(name, terms, now_s)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """A value that differs once the file has been changed; None if its metadata cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> KeyFile:
    """Raises ValueError, which names the file and the key."""
    try:
        data = json.loads(json.dumps(shallow(lambda: tomllib.loads(read_text(path))), default=str))
        found = from_json(KeyFile, data, "a file of keys")
        for name in found.keys:
            checked_name(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def checked_name(name: str) -> str:
    """Raises ValueError unless it can be a key's name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a key; give a letter and up to 63 letters, digits, - and _")
    return name


def key_digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(name: str) -> str:
    """A fresh key. Raises ValueError unless `name` can be a key's name."""
    return f"{checked_name(name)}.{secrets.token_urlsafe(SECRET_BYTES)}"
