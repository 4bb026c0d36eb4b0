"""The ended requests that can still be looked up."""

from typing import Generic, TypeVar

from server.access.identity import Owner

Record = TypeVar("Record")
Name = tuple[Owner, str]
"""Who may look a request up, and its id."""


class History(Generic[Record]):
    """The last `size` records. When one more is added, the client with the most records loses its oldest, so that no
    client displaces the records of a client that has fewer."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: dict[Name, tuple[str, Record]] = {}
        self._names: dict[str, dict[Name, None]] = {}  # of each client, the oldest first

    def add(self, client: str, name: Name, record: Record) -> None:
        """Keep a record; it replaces one of the same name."""
        self._drop(name)
        self._records[name] = (client, record)
        self._names.setdefault(client, {})[name] = None
        while len(self._records) > self._size:
            most = max(self._names.values(), key=len)
            self._drop(next(iter(most)))

    def find(self, name: Name) -> Record | None:
        found = self._records.get(name)
        return None if found is None else found[1]

    def _drop(self, name: Name) -> None:
        if name in self._records:
            client, _ = self._records.pop(name)
            del self._names[client][name]
            if not self._names[client]:
                del self._names[client]
