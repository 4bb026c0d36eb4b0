"""From an exit's scores on the device to the mask of the next stage."""

from torch import Tensor

from models.executors.gpu import kernels
from models.executors.gpu.layers import power_of_two
from models.network.configs import Masking

CRITERIA = ("max_probability", "entropy", "max_score")
"""The criteria that `update_mask` knows."""
ROWS = 64
"""Rows of one program."""


def update_mask(masking: Masking, index: int, scores: Tensor, mask: Tensor, decided: Tensor, *, first: bool) -> None:
    """Updates `mask` and `decided`, uint8 (N, h, w), after exit `index`, by a criterion of `CRITERIA`.

    `scores`: float32 (N, h, w, classes), with those of earlier exits at inactive positions (equation 7). `mask`: the
    one that they were computed under, then the next one (equation 2). `first`: all positions were computed, whatever
    the mask says.
    """
    rows, classes = mask.numel(), scores.shape[3]
    kernels.update_mask[(-(-rows // ROWS),)](
        scores, mask, decided, rows, masking.threshold, index, scores.stride(2), classes,
        CRITERION=masking.criterion, FIRST=first, ROWS=ROWS, BLOCK=power_of_two(classes),
    )  # fmt: skip
