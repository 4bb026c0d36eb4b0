"""Sizes: what size of image to expect of a request whose head alone is known."""

from collections import OrderedDict

Size = tuple[int, int]


class ExpectedSizes:
    """The last image sizes (height, width) by model and client. Cameras send one size again and again."""

    CLIENTS = 10_000
    """Pairs of a model and a client that are remembered; those that were not seen for longest are forgotten first."""

    def __init__(self) -> None:
        self._of_client: OrderedDict[tuple[str, str], Size] = OrderedDict()
        self._of_model: dict[str, Size] = {}

    def saw(self, model: str, client: str, size: Size) -> None:
        """A client has sent an image of this size."""
        self._of_model[model] = size
        self._of_client[model, client] = size
        self._of_client.move_to_end((model, client))
        if len(self._of_client) > self.CLIENTS:
            self._of_client.popitem(last=False)

    def expected(self, model: str, client: str, configured: Size) -> Size:
        """The last size of this client for this model, else the last size for it, else the `configured` one."""
        return self._of_client.get((model, client)) or self._of_model.get(model, configured)
