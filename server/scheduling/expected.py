"""What is known of a request that asks a worker for a place, and why it gets none."""

from dataclasses import dataclass

from server.scheduling.costs import Shape


@dataclass(frozen=True)
class Expected:
    """What is known of a request by its head.

    `shape`: the network input's height and width; a guess until the image is there. `required`: the first exit that is
    worth an answer. `deadline_s`: when that must be on the host. `client`: who asks. `prepare_s`: seconds until the
    image will have been received and decoded, `delays_s`: by how much that delays others; both 0 once it is there.
    """

    model: str
    shape: Shape
    required: int
    deadline_s: float
    client: str = ""
    prepare_s: float = 0.0
    delays_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken: its required exit would be there after `needs_s`, and `left_s` are left. It may be
    tried again after `wait_s`."""

    wait_s: float
    needs_s: float
    left_s: float
