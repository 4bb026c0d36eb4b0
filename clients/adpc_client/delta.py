"""The `delta` encoding of maps: what changed since the exit that was sent before. Imports `errors` only.

A zlib stream (RFC 1950) of H * W bytes, row-major, each the new label XOR the label held; zeros are held at first.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from adpc_client.errors import ProtocolError


def apply_delta(data: bytes, held: NDArray[np.uint8] | None, size: int) -> NDArray[np.uint8]:
    """The new map, uint8 (`size`,), flat; `held` is the map before it, left as it is. Raises ProtocolError."""
    inflate = zlib.decompressobj()
    try:
        changed = inflate.decompress(data, size + 1)  # bounded, whatever the stream claims to hold
    except zlib.error as error:
        raise ProtocolError(f"a delta of {len(data)} bytes cannot be unpacked: {error}") from error
    if len(changed) != size or not inflate.eof or inflate.unused_data:
        raise ProtocolError(f"a delta of {len(data)} bytes does not unpack to a map of {size} labels")
    labels = np.frombuffer(changed, np.uint8)
    return labels if held is None else labels ^ held
