import math

import pytest

from server.errors import InvalidError, NotJsonError
from server.protocols.options import (
    TIMEOUT_HEADER,
    CancelMessage,
    DeadlineMessage,
    PredictMessage,
    QueryOptions,
    parse_headers,
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
        "priority": "2",
    }
    message = {
        "deadline_ms": 12.5,
        "max_exit": 3,
        "best_effort": True,
        "box": [1, 2, 3, 4],
        "map": "exit",
        "model": "m",
        "priority": 2,
    }
    asked = {"model": "m", "deadline_ms": 12.5, "max_exit": 3, "map": "exit", "best_effort": True, "priority": 2}
    expected = QueryOptions(**asked, box="1,2,3,4")
    assert expected.box == (1.0, 2.0, 3.0, 4.0)
    assert parse_options(query) == parse_options(message) == expected
    assert parse_options({}) == parse_options({"deadline_ms": None}) == QueryOptions()


@pytest.mark.parametrize(
    "value", ["nan", "-inf", "1e400", "", "ten", True, [], {}, math.nan, 10**400, -3, 0, "0x10", "1_0", "\u0661\u0660"]
)
def test_a_deadline_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(InvalidError, match="deadline_ms"):
        parse_options({"deadline_ms": value})


def test_classes_are_names_or_numbers() -> None:
    assert parse_options({"classes": "road, 8"}).classes == ("road", "8")
    assert parse_message({"type": "predict", "id": "a", "classes": ["road", 8]}).classes == ("road", "8")


@pytest.mark.parametrize("classes", ["", [], 8, True, [True], [1.5], [None], "a," * 300])
def test_classes_are_a_list(classes: object) -> None:
    with pytest.raises(InvalidError, match="classes"):
        parse_message({"type": "predict", "id": "a", "classes": classes if classes != "" else []})


@pytest.mark.parametrize("meta", [7, "a\nb", "x" * 257, "\u00e4" * 129, "\ud800"])
def test_meta_is_a_short_printable_text(meta: object) -> None:
    assert parse_options({"meta": "\u00e4" * 128}).meta == "\u00e4" * 128
    with pytest.raises(InvalidError, match="meta is"):
        parse_options({"meta": meta})


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", [1, 2, 3, None], "0,0,0,5", "1e9,0,5,5", 7, [1, 2, 3, "nan"]])
def test_a_box_is_four_numbers_with_an_inside(box: object) -> None:
    for name in ("box", "roi"):
        with pytest.raises(InvalidError, match=name) as caught:
            parse_options({name: box})
        assert caught.value.code == f"bad_{name}"


@pytest.mark.parametrize("fields", [{"deadline_ms": "9" * 100_000}, {"max_exit": 1, "min_exit": "1e300"}])
def test_an_error_shows_little_of_a_long_value(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_options(fields)
    assert len(str(caught.value)) < 200


SENTENCES = [
    ({"deadline_ms": "-5"}, "deadline_ms is -5; it must be above 0, for example 100"),
    ({"deadline_ms": "soon"}, "deadline_ms is 'soon'; it must be a finite number above 0, for example 100"),
    ({"deadline_ms": []}, "deadline_ms is a list; it must be a finite number above 0, for example 100"),
    ({"deadline_ms": {}}, "deadline_ms is an object; it must be a finite number above 0, for example 100"),
    ({"deadline_ms": "{value}"}, "deadline_ms is '{value}'; it must be a finite number above 0, for example 100"),
    ({"min_exit": "1.5"}, "min_exit is '1.5'; exits are whole numbers from 1"),
    ({"min_exit": 3, "max_exit": 2}, "max_exit is 2 and min_exit 3; min_exit must not be larger"),
    (
        {"quality": "2"},
        "quality is 2; give the share of the pixels that may still change, between 0 and 1, for example 0.05",
    ),
    ({"min_exit": "last"}, "min_exit is 'last'; exits are whole numbers from 1"),
    ({"priority": "high"}, "priority is 'high'; it may be 0, 1 or 2"),
    (
        {"quality": "good"},
        "quality is 'good'; give the share of the pixels that may still change, between 0 and 1, for example 0.05",
    ),
    ({"map": "depth"}, "map is 'depth'; it may be confidence, exit, unsure"),
    ({"model": 7}, "model is 7; give a name"),
    ({"best_effort": "perhaps"}, "best_effort is 'perhaps'; it may be true or false"),
    ({"box": "1,2,3"}, "box is '1,2,3'; give x,y,width,height in pixels, for example 40,10,120,300"),
    ({"box": "0,0,0,5"}, "box is '0,0,0,5'; width and height must be at least 1, all below 1,000,000"),
    ({"box": "0,0,x,5"}, "box is 'x'; it must be a finite number"),
    ({"priority": "3"}, "priority is '3'; it may be 0, 1 or 2"),
    ({"priority": 0.5}, "priority is 0.5; it may be 0, 1 or 2"),
    (
        {"deadline": 5},
        "there is no parameter 'deadline'; there are best_effort, box, captured_at, classes, deadline_ms, encoding, ",
    ),
    ({"extra": "exit"}, "there is no parameter 'extra'; there are "),
]


@pytest.mark.parametrize(("fields", "sentence"), SENTENCES, ids=[str(fields) for fields, _ in SENTENCES])
def test_errors_say_name_value_and_remedy(fields: dict[str, object], sentence: str) -> None:
    for parse in (parse_options, lambda fields: parse_message({"type": "predict", "id": "a", **fields})):
        with pytest.raises(InvalidError) as caught:
            parse(fields)
        assert str(caught.value).startswith(sentence)
        assert caught.value.code == ("bad_box" if sentence.startswith("box is '1") else caught.value.code)


def test_many_parameters_are_not_looked_at() -> None:
    with pytest.raises(InvalidError, match="there are 101 parameters, and the limit is 100; give documented ones only"):
        parse_options({f"a{number}": 1 for number in range(101)})


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidError, match="a parameter's name is not Unicode text") as caught:
        parse_message(parse_json(r'{"type": "predict", "id": "a", "\ud800": 1}'))
    assert caught.value.code == "bad_parameter"


def test_headers() -> None:
    assert parse_headers({}).timeout_s is None
    assert parse_headers({"X-Request-Timeout-Seconds": "0.5", "Host": "x"}).timeout_s == 0.5
    with pytest.raises(InvalidError, match="X-Request-Timeout-Seconds is -1; it must be above 0"):
        parse_headers({"X-Request-Timeout-Seconds": "-1"})


def test_of_several_deadlines_the_smallest_counts() -> None:
    assert parse_options({"deadline_ms": "9"}, ["500", "20", "9e1"]).deadline_ms == 20
    assert parse_headers({TIMEOUT_HEADER: "9"}, ["0.5", "0.2", "9"]).timeout_s == 0.2
    message = parse_json('{"type": "predict", "deadline_ms": 20, "id": "a", "deadline_ms": "500", "id": "b"}')
    assert (message["deadline_ms"], message["id"]) == (20, "b")
    for parse in (
        lambda: parse_options({}, ["500", "-1"]),
        lambda: parse_json('{"deadline_ms": 5, "deadline_ms": null}'),
    ):
        with pytest.raises(InvalidError, match="deadline_ms is "):
            parse()


def test_messages() -> None:
    plain = PredictMessage(type="predict", id="a", encoding="png")
    assert parse_message({"type": "predict", "id": "a"}) == plain
    assert parse_message({"type": "predict", "id": "a", "encoding": None, "deadline_ms": None}) == plain
    assert parse_message({"type": "cancel", "id": "a", "why": "late"}) == CancelMessage(type="cancel", id="a")
    moved = parse_message({"type": "deadline", "id": "a", "deadline_ms": 5})
    assert isinstance(moved, DeadlineMessage) and moved.deadline_ms == 5


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"type": "predict", "id": ""}, "id is ''; give a string of 1 to 128 printable characters"),
        ({"type": "cancel"}, "id is missing; give a string of 1 to 128 printable characters"),
        ({"type": "explain", "id": "a"}, "type is 'explain'; it may be predict, cancel, deadline"),
        ({"type": ["cancel"], "id": "a"}, "type is a list; it may be predict, cancel, deadline"),
        ({"id": "a"}, "type is missing; it may be predict, cancel, deadline"),
        ({"type": "predict", "id": "a", "encoding": "gif"}, "encoding is 'gif'; it may be png, raw, delta, json, rle"),
        ({"type": "deadline", "id": "a"}, "deadline_ms is missing; say how many milliseconds from now"),
    ],
)
def test_errors_of_messages(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_message(fields)
    assert (str(caught.value), caught.value.code) == (sentence, "bad_message")


@pytest.mark.parametrize("text", ["", "{", "1", "[" * 100_000, '{"a":' * 100_000, "null"])
def test_what_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(NotJsonError):
        parse_json(text)
