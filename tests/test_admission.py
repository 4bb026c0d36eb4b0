from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from server.errors import InvalidError, TooManyRequestsError
from server.protocols.options import RequestOptions, parse_options
from server.requests.admission import ClientLimit, check_options, image_age_s


def test_a_client_has_a_burst_and_a_rate() -> None:
    limit = ClientLimit(rate=2.0, burst=3)
    for _ in range(3):
        limit.check("a", 10.0)
    with pytest.raises(TooManyRequestsError, match="a may send 2 requests a second and 3 at once"):
        limit.check_token("a", 10.0)
    with pytest.raises(TooManyRequestsError) as caught:
        limit.check("a", 10.25)
    assert caught.value.retry_after_s == pytest.approx(0.25)
    limit.check("b", 10.25)
    limit.check("a", 10.5)
    limit.check_token("a", 100.0)


def test_clients_are_forgotten_and_no_rate_is_no_limit() -> None:
    limit = ClientLimit(rate=1.0, burst=1)
    limit.CLIENTS = 2  # type: ignore[misc]
    for client in ("a", "b", "c"):
        limit.check(client, 0.0)
    limit.check("a", 0.0)
    for _ in range(100):
        ClientLimit(0, 1).check("a", 0.0)


def test_the_client_that_was_not_seen_for_longest_is_forgotten() -> None:
    limit = ClientLimit(rate=0.001, burst=2)
    limit.CLIENTS = 2  # type: ignore[misc]
    for client in "abac":
        limit.check(client, 0.0)
    with pytest.raises(TooManyRequestsError):
        limit.check("a", 0.0)


def test_the_age_of_an_image_is_that_on_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the request has taken since then, for example until its body was there."""
    monkeypatch.setattr("server.requests.admission.time", SimpleNamespace(time=lambda: 1000.0, monotonic=lambda: 53.0))
    ages_s = [image_age_s(RequestOptions(captured_at=captured_s), 50.0) for captured_s in (990.0, 998.0, None)]
    assert ages_s == [7.0, 0.0, 0.0]


def test_an_exit_that_a_model_has_not_is_refused_in_a_short_sentence() -> None:
    model = Mock(config=Mock(exits=4))
    model.name = "small"
    with pytest.raises(InvalidError, match="max_exit is 5; small has exits 1 to 4"):
        check_options(parse_options({"max_exit": "5"}), model, calibrated=False)
    with pytest.raises(InvalidError) as caught:
        check_options(parse_options({"min_exit": "1e300"}), model, calibrated=False)
    assert len(str(caught.value)) < 200
