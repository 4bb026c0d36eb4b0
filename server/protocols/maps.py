"""What a client sees of a job's maps: the classes that it asked for."""

import numpy as np

from server.engine.job import Job
from server.protocols.encoder import Map
from server.protocols.options import RequestOptions

NO_CLASS = 255
"""The value of pixels that the client did not ask for. A PNG shows them transparent."""


def label_map(job: Job, exit_index: int, options: RequestOptions) -> Map:
    """The labels of an exit that was reached: uint8 (H, W), `NO_CLASS` where the client asked for other classes."""
    labels = job.labels(exit_index)
    if options.classes is None:
        return labels
    table = np.full(256, NO_CLASS, np.uint8)
    numbers = job.model.class_numbers(options.classes)
    table[numbers] = numbers
    return table[labels]


def has_holes(options: RequestOptions) -> bool:
    """Whether `label_map` may hold `NO_CLASS`."""
    return options.classes is not None
