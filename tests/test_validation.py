"""Values from files, and pydantic's errors as sentences."""

from dataclasses import replace
from typing import Annotated, Literal

import pytest
from pydantic import Field

from models.validation import from_json, value


@value()
class Inner:
    share: Annotated[float, Field(gt=0, le=1)]
    kind: Literal["round", "square"] = "round"

    def __post_init__(self) -> None:
        if self.kind == "square" and self.share == 1:
            raise ValueError("a square has no share of 1; give less")


@value()
class Outer:
    name: str
    inner: Inner
    several: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (0, 0)
    maybe: int | None = None


RIGHT = {"name": "a", "inner": {"share": 0.5}}


def test_a_value_is_read_with_its_defaults_and_lists_as_tuples() -> None:
    found = from_json(Outer, {**RIGHT, "several": [{"share": 1, "kind": "round"}], "pair": [1, 2]}, "an outer")
    assert found == Outer("a", Inner(0.5), (Inner(1.0),), (1, 2))
    assert hash(found) == hash(replace(found))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": 3}, "name is 3; give text"),
        ({"maybe": "1"}, "maybe is '1'; give a whole number"),
        ({"inner": {"share": 0}}, "inner.share is 0; it must be above 0"),
        ({"inner": {"share": 2}}, "inner.share is 2; it may be at most 1"),
        ({"inner": {"share": True}}, "inner.share is True; give a finite number"),
        ({"inner": {"share": 0.5, "kind": "oval"}}, "inner.kind is 'oval'; it may be round, square"),
        ({"inner": {"share": 1, "kind": "square"}}, "a square has no share of 1; give less"),
        ({"several": [{"share": 0.5}, 7]}, "several[1] is 7; give an object"),
        ({"several": [{"share": 0.5}, {"share": -1}]}, "several[1].share is -1; it must be above 0"),
        ({"pair": [1]}, "pair is [1]; give 2 values"),
        ({"pair": []}, "pair is []; give 2 values"),
        ({"pair": [1, 2, 3]}, "pair is [1, 2, 3]; give 2 values"),
        ({"pair": "12"}, "pair is '12'; give a list"),
        ({"name": None}, "name is None; give text"),
        ({"pair": ["x" * 99, 1]}, f"pair[0] is '{'x' * 79}...; give a whole number"),
        ({"inner": {}}, "not an outer: inner.share is missing; its fields are name, inner, several, pair, maybe"),
        ({"inner": 1}, "not an outer: inner is 1; give an object; its fields are name, inner, several, pair, maybe"),
        ({"more": 1}, "not an outer: more is unknown; its fields are name, inner, several, pair, maybe"),
    ],
)
def test_a_problem_is_a_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_json(Outer, {**RIGHT, **change}, "an outer")
    assert str(caught.value) == sentence


def test_arguments_are_checked_and_named_too() -> None:
    for make, sentence in (
        (lambda: Inner(0.0), "share is 0.0; it must be above 0"),
        (lambda: Inner(0.5, "oval"), "kind is 'oval'; it may be round, square"),  # type: ignore[arg-type]
        (lambda: replace(Inner(1.0), kind="square"), "a square has no share of 1; give less"),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == sentence
