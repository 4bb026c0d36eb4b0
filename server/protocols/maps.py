"""The maps of a job as a client receives them: as large as the image, and empty outside the classes and the region that
the client asked for."""

import numpy as np

from models.imaging.geometry import Size
from server.engine.job import Job
from server.protocols.encoder import Map
from server.requests.record import RequestRecord

NO_CLASS = 255
"""The label of pixels that the client did not ask for. A PNG shows them transparent."""


def answer_size(record: RequestRecord, job: Job) -> Size:
    """Height and width of the maps."""
    region, layout = record.region, job.spec.layout
    return (layout.height, layout.width) if region is None else (region.height, region.width)


def label_map(record: RequestRecord, job: Job, exit_index: int) -> Map:
    """The labels of an exit that was reached: uint8 (H, W), `NO_CLASS` where the client asked for other classes, and
    outside its region."""
    labels = job.labels(exit_index)
    if record.options.classes is not None:
        table = np.full(256, NO_CLASS, np.uint8)
        numbers = job.model.class_numbers(record.options.classes)
        table[numbers] = numbers
        labels = table[labels]
    return _in_image(record, labels, NO_CLASS)


def further_map(record: RequestRecord, job: Job, exit_index: int) -> Map | None:
    """The further map of an exit that was reached: uint8 (H, W), 0 outside the region that the client asked for; None
    without one."""
    extra = job.extra_map(exit_index)
    return None if extra is None else _in_image(record, extra, 0)


def _in_image(record: RequestRecord, values: Map, outside: int) -> Map:
    region = record.region
    if region is None:
        return values
    whole = np.full((region.height, region.width), outside, np.uint8)
    whole[region.answered] = values[region.within]
    return whole


def has_holes(record: RequestRecord) -> bool:
    """Whether `label_map` may hold `NO_CLASS`."""
    return record.options.classes is not None or record.region is not None
