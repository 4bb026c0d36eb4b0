"""Sizes: the size of image to expect of a request of which only the head is known. Pure: the caller passes the time
in."""

from collections import OrderedDict
from typing import NamedTuple

Size = tuple[int, int]


class _Seen(NamedTuple):
    """What a client has sent. `sizes`: its different sizes, the latest first. `at_s`: when it sent the latest image."""

    sizes: tuple[Size, ...]
    at_s: float


class ExpectedSizes:
    """The latest image sizes (height, width) by model and client. Cameras send one size again and again.

    Of several sizes the smallest is expected. A request that turns out to be larger is refused once its image is there,
    while one that was expected to be larger than it is would be refused for nothing.
    """

    CLIENTS = 10_000
    """The number of pairs of a model and a client that are remembered; the least recently seen are forgotten first."""
    SIZES = 4
    """The number of different sizes that are remembered for each pair; the least recently seen is forgotten first."""
    FRESH_S = 10.0
    """For so many seconds after a client's latest image, the server expects its earlier sizes. Later it expects a small
    image once more: the client may have changed to smaller ones, and the server cannot notice that while it refuses
    each request by its head."""

    def __init__(self) -> None:
        self._of_client: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._of_model: dict[str, tuple[Size, ...]] = {}

    def saw(self, model: str, client: str, size: Size, now_s: float) -> None:
        """Note that a client has sent an image of this size."""
        before = self._of_client.pop((model, client), _Seen((), now_s))
        self._of_client[model, client] = _Seen(self._with(size, before.sizes), now_s)
        self._of_model[model] = self._with(size, self._of_model.get(model, ()))
        if len(self._of_client) > self.CLIENTS:
            self._of_client.popitem(last=False)

    def last(self, model: str, client: str, configured: Size) -> Size:
        """This client's last size for this model, else anyone's, else the `configured` size."""
        seen = self._of_client.get((model, client))
        return (seen.sizes if seen else self._of_model.get(model, (configured,)))[0]

    def expected(self, model: str, client: str, configured: Size, now_s: float) -> Size:
        """The smallest, by area, of this client's latest sizes for this model. If it sent none within `FRESH_S`, the
        smallest of everyone's and the `configured` size."""
        seen = self._of_client.get((model, client))
        if seen and now_s < seen.at_s + self.FRESH_S:
            sizes = seen.sizes
        else:
            sizes = (*self._of_model.get(model, ()), configured)
        return min(sizes, key=lambda size: size[0] * size[1])

    def _with(self, size: Size, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        """Returns `sizes` with `size` moved or added to the front, and the last one dropped if there are too many."""
        return (size, *(other for other in sizes if other != size))[: self.SIZES]
