"""How many cores this process may compute on."""

import math

import torch

from models.machine import quota


def usable() -> int:
    """How many threads to compute with: one for each core that the process may run on, or fewer if its control groups
    allow it less time.

    More threads would use up the allowed time early in each period, and all threads would stop until the next one.
    """
    return min(torch.get_num_threads(), max(1, math.floor(min(quota(), 1024))))
