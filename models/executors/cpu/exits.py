"""From an exit's scores on the CPU to its label map and its mask, by the native code.

Scores are float32 (C, h, w) whose classes are adjacent in memory, as the rows of the last matrix are.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.executors.cpu.library import library
from models.executors.cpu.thread_pool import ThreadPool
from models.imaging.geometry import STRIDE, Frame, bands
from models.network.confidence import make_mask
from models.network.configs import Masking

CRITERIA = {"max_probability": 0, "max_score": 1}
"""The criteria that the native code knows, by their number in native/exits.cpp."""


def labels(pool: ThreadPool, scores: Tensor, frame: Frame, out: NDArray[np.uint8]) -> Iterator[None]:
    """The label map of logits, as `postprocess.labels`: (C, h, w) -> `out`, uint8 (H, W), at the image's size.

    Classes that are equal but for rounding may differ from it. (h, w) must be a quarter of the padded image.
    """
    classes, height, width = scores.shape
    assert out.shape == (frame.height, frame.width) and out.flags.c_contiguous
    best = np.empty((height, width), np.uint8)
    for band in bands(height + 1, STRIDE**2 * width):
        library().label_map(
            pool.native,
            scores.data_ptr(),
            height,
            width,
            _row_pitch(scores),
            classes,
            best.ctypes.data,
            out.ctypes.data,
            *out.shape,
            band.start,
            band.stop,
        )
        yield


def next_mask(
    pool: ThreadPool,
    scores: Tensor,
    masking: Masking,
    exit_index: int,
    *,
    active: NDArray[np.bool_] | None,
    before: NDArray[np.bool_] | None,
) -> Generator[None, None, NDArray[np.bool_]]:
    """The mask for the next stage, bool (h, w), as `confidence.make_mask`; yields after each band of lines, if the
    criterion looks at each position by itself, as those do whose masks shrink.

    `active`: bool (h, w), the mask under which the scores were computed; None if all of them were. `before`: bool
    (h, w), the mask that the exit before left; None if there is none. Scores at inactive positions are those of
    `before`'s exit (equation 7), so that these positions keep the value that they have there.
    """
    classes, height, width = scores.shape
    mask = np.empty((height, width), np.bool_) if before is None else before.copy()
    for lines in bands(height, STRIDE**2 * width) if masking.shrinks else [slice(None)]:
        part = scores[:, lines]
        if masking.criterion not in CRITERIA:
            with _one_torch_thread():
                mask[lines] = make_mask(part[None].contiguous(), masking, exit_index)[0, 0].numpy()
        else:
            library().update_mask(
                pool.native,
                part.data_ptr(),
                part.shape[1],
                width,
                _row_pitch(scores),
                classes,
                CRITERIA[masking.criterion],
                masking.threshold,
                None if active is None else active[lines].ctypes.data,
                mask[lines].ctypes.data,
            )
        yield
    return mask


def _row_pitch(scores: Tensor) -> int:
    """Floats from one position to the next."""
    class_pitch, line_pitch, row_pitch = scores.stride()
    assert class_pitch == 1
    assert line_pitch == scores.shape[2] * row_pitch
    return row_pitch


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keeps torch to the calling thread. The little work of an exit needs no more, and once torch's other threads wake
    up, they spin for milliseconds on the cores that the thread pool needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
