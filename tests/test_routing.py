"""Which of several workers takes a request."""

from dataclasses import dataclass
from typing import Any

import pytest

from server.engine.routing import route
from server.scheduling.expected import Expected, Refusal

EXPECTED = Expected("model", (64, 96), 1, 10.0)


@dataclass
class FakeBacklog:
    """What a worker owes: `requests`, after which a further one would be ready in `ready`; or why it takes none."""

    ready: float
    requests: int = 0
    refused: Refusal | None = None

    def refusal(self, expected: Expected, now_s: float) -> Refusal | None:
        return self.refused

    def ready_s(self, expected: Expected, now_s: float) -> float:
        return self.ready

    def __len__(self) -> int:
        return self.requests


REFUSED = Refusal(wait_s=0.3, needs_s=1.0, left_s=0.5)
SOONER = Refusal(wait_s=0.1, needs_s=2.0, left_s=0.5)


@pytest.mark.parametrize(
    ("backlogs", "taken"),
    [
        ([FakeBacklog(0.2), FakeBacklog(0.1)], 1),
        ([FakeBacklog(0.1, 3), FakeBacklog(0.111, 1), FakeBacklog(0.2)], 1),  # as fast, within a tenth and 2 ms
        ([FakeBacklog(0.1, 3), FakeBacklog(0.113, 1)], 0),
        ([FakeBacklog(0.1, 2), FakeBacklog(0.1, 1), FakeBacklog(0.1, 1)], 1),
        ([FakeBacklog(0.1, refused=REFUSED), FakeBacklog(0.5, 9)], 1),
        ([FakeBacklog(0.1, refused=REFUSED), FakeBacklog(0.5, 9), FakeBacklog(0.4, 9)], 2),
    ],
)
def test_the_first_to_finish_takes_a_request_and_of_equals_the_one_with_the_fewest(
    backlogs: list[Any], taken: int
) -> None:
    assert route(backlogs, EXPECTED, 0.0) is backlogs[taken]


def test_of_the_refusals_the_one_with_the_shortest_wait_is_told() -> None:
    backlogs: list[Any] = [FakeBacklog(0.1, refused=REFUSED), FakeBacklog(0.2, refused=SOONER)]
    assert route(backlogs, EXPECTED, 0.0) is SOONER
