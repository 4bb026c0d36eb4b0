"""Who asks, and who may look up what."""

import pytest

from server.access.identity import ANYONE, Caller, caller_of, token_digest
from server.errors import InvalidError
from server.requests.history import History

TOKEN = token_digest("a secret of its own")
OTHER_TOKEN = token_digest("the secret of another")


@pytest.mark.parametrize(
    ("sender", "made_id", "asker", "found"),
    [
        # a made id is itself the secret
        (Caller("192.0.2.1"), True, Caller("192.0.2.1"), True),
        (Caller("192.0.2.1"), True, Caller("192.0.2.2"), True),
        (Caller("192.0.2.1"), True, Caller("192.0.2.2", token=TOKEN), True),
        # an id that the client chose works from its address
        (Caller("192.0.2.1"), False, Caller("192.0.2.1"), True),
        (Caller("192.0.2.1"), False, Caller("192.0.2.1", token=TOKEN), True),
        (Caller("192.0.2.1"), False, Caller("192.0.2.2"), False),
        # a token goes with the request
        (Caller("192.0.2.1", token=TOKEN), True, Caller("192.0.2.2", token=TOKEN), True),
        (Caller("192.0.2.1", token=TOKEN), False, Caller("192.0.2.2", token=TOKEN), True),
        (Caller("192.0.2.1", token=TOKEN), True, Caller("192.0.2.1"), False),
        (Caller("192.0.2.1", token=TOKEN), False, Caller("192.0.2.1"), False),
        (Caller("192.0.2.1", token=TOKEN), False, Caller("192.0.2.1", token=OTHER_TOKEN), False),
        # with keys the key alone counts
        (Caller("192.0.2.1", "a"), True, Caller("192.0.2.2", "a"), True),
        (Caller("192.0.2.1", "a", TOKEN), False, Caller("192.0.2.2", "a"), True),
        (Caller("192.0.2.1", "a"), True, Caller("192.0.2.1", "b"), False),
        (Caller("192.0.2.1", "a"), False, Caller("192.0.2.1", "b"), False),
        (Caller("192.0.2.1", "a", TOKEN), False, Caller("192.0.2.1", "b", TOKEN), False),
        (Caller("192.0.2.1", "a"), True, Caller("192.0.2.1"), False),
    ],
)
def test_a_request_belongs_to_who_sent_it(sender: Caller, made_id: bool, asker: Caller, found: bool) -> None:
    assert (sender.owner(made_id=made_id) in asker.owners) is found


@pytest.mark.parametrize("length", [15, 257])
def test_a_token_is_long_enough_not_to_be_guessed(length: int) -> None:
    with pytest.raises(InvalidError, match=f"has {length} characters; send a random secret of 16 to 256"):
        token_digest("x" * length)
    assert len({token_digest("x" * 16), token_digest("x" * 256), TOKEN}) == 3


@pytest.mark.parametrize(
    ("caller", "name", "network"),
    [
        (Caller("192.0.2.1"), "192.0.2.1", "192.0.2.1"),
        (Caller("2001:db8:1:2:3::4"), "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        (Caller("::ffff:192.0.2.1"), "::ffff:192.0.2.1", "192.0.2.1"),
        (Caller("fe80::1%eth0"), "fe80::1%eth0", "fe80::/64"),
        (Caller("2001:db8::4", "robot"), "robot", "robot"),
        (Caller("not:an:address"), "not:an:address", "not:an:address"),
    ],
)
def test_callers_are_known_by_key_or_address(caller: Caller, name: str, network: str) -> None:
    assert (caller.name, caller.network) == (name, network)


def test_without_a_guard_somebody_asks() -> None:
    assert caller_of({}).name == "unknown"


def test_the_client_with_most_records_loses_its_oldest() -> None:
    history: History[str] = History(3)
    history.add("quiet", (ANYONE, "q"), "quiet")
    for number in range(10):
        history.add("busy", (ANYONE, f"{number}"), f"busy {number}")
    assert [history.find((ANYONE, name)) for name in ("q", "7", "8", "9")] == ["quiet", None, "busy 8", "busy 9"]


def test_a_record_replaces_one_of_the_same_name() -> None:
    history: History[str] = History(2)
    for name, record in (("a", "first"), ("b", "second"), ("a", "third"), ("c", "fourth")):
        history.add("client", (ANYONE, name), record)
    assert [history.find((ANYONE, name)) for name in "abc"] == ["third", None, "fourth"]
    assert history.find((("address", "192.0.2.1"), "a")) is None
