"""Sizes: the size of image to expect of a request of which only the head is known."""

from collections import OrderedDict

Size = tuple[int, int]


class ExpectedSizes:
    """The latest image sizes (height, width) by model and client. Cameras send one size again and again.

    Of several sizes the smallest is expected. A request that turns out to be larger is refused once its image is there,
    while one that was expected to be larger than it is would be refused for nothing.
    """

    CLIENTS = 10_000
    """The number of pairs of a model and a client that are remembered; the least recently seen are forgotten first."""
    SIZES = 4
    """The number of different sizes that are remembered for each pair; the least recently seen is forgotten first."""

    def __init__(self) -> None:
        self._of_client: OrderedDict[tuple[str, str], tuple[Size, ...]] = OrderedDict()
        self._of_model: dict[str, tuple[Size, ...]] = {}

    def saw(self, model: str, client: str, size: Size) -> None:
        """Note that a client has sent an image of this size."""
        self._of_model[model] = self._with(size, self._of_model.get(model, ()))
        self._of_client[model, client] = self._with(size, self._of_client.pop((model, client), ()))
        if len(self._of_client) > self.CLIENTS:
            self._of_client.popitem(last=False)

    def last(self, model: str, client: str, configured: Size) -> Size:
        """This client's last size for this model, else anyone's, else the `configured` size."""
        return self._latest(model, client, configured)[0]

    def expected(self, model: str, client: str, configured: Size) -> Size:
        """The smallest, by area, of this client's latest sizes for this model, else of everyone's, else the
        `configured` size."""
        return min(self._latest(model, client, configured), key=lambda size: size[0] * size[1])

    def _latest(self, model: str, client: str, configured: Size) -> tuple[Size, ...]:
        return self._of_client.get((model, client)) or self._of_model.get(model) or (configured,)

    def _with(self, size: Size, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        """Returns `sizes` with `size` moved or added to the front, and the last one dropped if there are too many."""
        return (size, *(other for other in sizes if other != size))[: self.SIZES]
