import pytest

from server.trace_context import TraceContext, parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("text", [f"00-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-comes-later"])
def test_a_callers_span(text: str) -> None:
    assert parse_traceparent(text) == TraceContext(TRACE, SPAN, "01")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_breaks_the_standard_counts_as_none(text: str | None) -> None:
    assert parse_traceparent(text) is None


def test_a_child_is_another_span_of_the_same_trace() -> None:
    caller = TraceContext(TRACE, SPAN, "01")
    child = caller.child()
    assert (child.trace_id, child.flags) == (TRACE, "01") and child.span_id != SPAN
    assert parse_traceparent(str(child)) == child
