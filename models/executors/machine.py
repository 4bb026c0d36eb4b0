"""How many cores this process may compute on."""

import math

import torch

from models.machine import quota

CORES = torch.get_num_threads()
"""The cores that the process may run on, as torch finds them (and OMP_NUM_THREADS limits them) before any executor sets
its own number of threads."""


def usable() -> int:
    """How many threads to compute with: one for each of `CORES`, or fewer if the process's control groups allow it less
    time.

    More threads would use up the allowed time early in each period, and all threads would stop until the next one.
    """
    return min(CORES, max(1, math.floor(min(quota(), 1024))))
