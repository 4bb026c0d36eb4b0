"""The `delta` encoding of maps, which sends the changes since the exit that was sent before.

It is a zlib stream (RFC 1950) of H * W bytes in row-major order. Each byte is the new label XOR the label that the
client holds; before the first exit the client holds zeros.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from adpc_client.errors import ProtocolError


def apply_delta(data: bytes, held: NDArray[np.uint8] | None, size: int) -> NDArray[np.uint8]:
    """The new map, uint8 (`size`,), made of `data` and the map `held` before, uint8 (`size`,) or None for zeros.

    Does not change `held`. Raises ProtocolError if `data` does not unpack to `size` labels.
    """
    inflate = zlib.decompressobj()
    try:
        changed = inflate.decompress(
            data, size + 1
        )  # one byte over the limit shows an oversized map without unpacking it
    except zlib.error as error:
        raise ProtocolError(f"a delta of {len(data)} bytes cannot be unpacked: {error}") from error
    if len(changed) != size or not inflate.eof or inflate.unused_data:
        raise ProtocolError(f"a delta of {len(data)} bytes does not unpack to a map of {size} labels")
    labels = np.frombuffer(changed, np.uint8)
    return labels if held is None else labels ^ held
