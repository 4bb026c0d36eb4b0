"""Which exits of a job count as skipped."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.protocols.exits import skipped_exits


@pytest.mark.parametrize(
    ("required", "changed", "sent", "skipped"),
    [
        (1, [True, True, True, True], [1, 2, 3, 4], []),
        (1, [True, True, True, True], [3, 4], [1, 2]),
        (1, [True, False, True], [3], [1]),  # exit 2 had the map of exit 1
        (2, [True, True, True], [3], [2]),  # the required exit itself, but none before it
        (3, [True, True], [], []),
    ],
)
def test_an_exit_is_skipped_if_it_could_have_been_sent(
    required: int, changed: list[bool], sent: list[int], skipped: list[int]
) -> None:
    exits = [SimpleNamespace(exit=number, changed=differs) for number, differs in enumerate(changed, 1)]
    job: Any = SimpleNamespace(spec=SimpleNamespace(required=required), exits=exits)
    assert skipped_exits(job, sent) == skipped
