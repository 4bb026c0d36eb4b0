import math

import pytest

from server.errors import InvalidError, NotAcceptableError, NotJsonError
from server.protocols.options import (
    CancelById,
    NewDeadline,
    Predict,
    RequestOptions,
    accepted_format,
    parse_json,
    parse_message,
    parse_options,
)


def test_strings_and_json_values_mean_the_same() -> None:
    query = {
        "deadline_ms": "12.5",
        "max_exit": "3",
        "best_effort": "true",
        "box": "1,2,3,4",
        "map": "exit",
        "model": "m",
    }
    message = {
        "deadline_ms": 12.5,
        "max_exit": 3,
        "best_effort": True,
        "box": [1, 2, 3, 4],
        "map": "exit",
        "model": "m",
    }
    expected = RequestOptions("m", 12.5, None, 3, None, "exit", True, (1.0, 2.0, 3.0, 4.0))
    assert parse_options(query) == parse_options(message) == expected
    assert parse_options({}) == parse_options({"deadline_ms": None}) == RequestOptions()


@pytest.mark.parametrize("value", ["nan", "-inf", "1e400", "", "ten", True, [], {}, math.nan, 10**400, -3, 0])
def test_a_deadline_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(InvalidError, match="deadline_ms"):
        parse_options({"deadline_ms": value})


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", [1, 2, 3, None], "0,0,0,5", "1e9,0,5,5", 7, [1, 2, 3, "nan"]])
def test_a_box_is_four_numbers_with_an_inside(box: object) -> None:
    with pytest.raises(InvalidError, match="box"):
        parse_options({"box": box})


def test_an_error_shows_little_of_a_long_value() -> None:
    with pytest.raises(InvalidError) as caught:
        parse_options({"deadline_ms": "9" * 100_000})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("text/html, image/png;q=0.5, application/json;q=0.4", "image/png"),
        ("application/*;q=0.2, image/png;q=0.1", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("APPLICATION/OCTET-STREAM", "application/octet-stream"),
    ],
)
def test_the_best_format_is_chosen(accept: str, expected: str) -> None:
    assert accepted_format(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=x", ",,,"])
def test_no_format_fits(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="can be application/json or image/png or"):
        accepted_format(accept)


def test_messages() -> None:
    assert parse_message({"type": "predict", "id": "a"}) == Predict("a", RequestOptions(), "png")
    assert parse_message({"type": "predict", "id": "a", "encoding": None}) == Predict("a", RequestOptions(), "png")
    assert parse_message({"type": "cancel", "id": "a"}) == CancelById("a")
    assert parse_message({"type": "deadline", "id": "a", "deadline_ms": 5}) == NewDeadline("a", 5)


@pytest.mark.parametrize("text", ["", "{", "1", "[" * 100_000, '{"a":' * 100_000, "null"])
def test_what_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(NotJsonError):
        parse_json(text)
