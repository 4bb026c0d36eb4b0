"""How messages lie in a socket: as `multiprocessing.Connection` frames them, with the length in 4 bytes before each."""

import pickle
import struct

from server.engine.messages import Command, Event


def framed(message: Command | Event) -> bytes:
    """The bytes of a message: the length, then the pickled object."""
    data = pickle.dumps(message)
    return struct.pack("!i", len(data)) + data


def unframed(received: bytearray) -> Event | None:
    """Take the first event off the bytes that have come; None while it is incomplete."""
    if len(received) < 4:
        return None
    end = 4 + struct.unpack_from("!i", received)[0]
    if len(received) < end:
        return None
    event: Event = pickle.loads(received[4:end])
    del received[:end]
    return event
