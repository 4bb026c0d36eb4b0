"""The `delta` encoding of maps: what changed since the exit that was sent before. Imports `errors` only.

All numbers are little-endian. `uint32 kind`; kind 0 is followed by the whole map, uint8 row-major; kind 1 by
`uint32 count, uint32 start[count], uint32 length[count], uint8 labels[sum(length)]`: runs of new labels at positions
y * W + x, ascending. What no run covers stays as it was.
"""

import numpy as np
from numpy.typing import NDArray

from adpc_client.errors import ProtocolError

_FULL, _RUNS = 0, 1


def apply_delta(data: bytes, held: NDArray[np.uint8] | None, size: int) -> NDArray[np.uint8]:
    """The new map, uint8 (`size`,), flat; `held` is the map before it, left as it is. Raises ProtocolError."""
    kind = int.from_bytes(data[:4], "little")
    if len(data) >= 4 and kind == _FULL:
        return np.frombuffer(data, np.uint8, offset=4)
    if len(data) < 8 or kind != _RUNS or held is None:
        raise ProtocolError(f"a delta of {len(data)} bytes and kind {kind} cannot follow {_held(held)}")
    count = int.from_bytes(data[4:8], "little")
    if len(data) < 8 + 8 * count:
        raise ProtocolError(f"a delta of {len(data)} bytes is too short for its {count} runs")
    starts, lengths = np.frombuffer(data, "<u4", 2 * count, offset=8).astype(np.int64).reshape(2, count)
    labels = np.frombuffer(data, np.uint8, offset=8 + 8 * count)
    if lengths.sum() != labels.size or (count and int((starts + lengths).max()) > size):
        raise ProtocolError(f"a delta's {count} runs do not fit {labels.size} labels and a map of {size}")
    before = np.cumsum(lengths) - lengths
    new = held.copy()
    new[np.arange(labels.size) + np.repeat(starts - before, lengths)] = labels
    return new


def _held(held: NDArray[np.uint8] | None) -> str:
    return "no map" if held is None else f"a map of {held.size} labels"
