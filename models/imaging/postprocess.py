"""Makes the maps of an exit at the image's size: labels or keypoints, and the further maps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.anytime import Exit, ExitMap, MapMemory
from models.imaging.geometry import STRIDE, Frame, bands
from models.network.confidence import confidence
from models.network.configs import Extra, ModelConfig

Labels = Callable[[Tensor, Frame, NDArray[np.uint8]], Iterator[None]]
"""A function with the arguments and the result of `labels`."""


def labels(scores: Tensor, frame: Frame, out: NDArray[np.uint8]) -> Iterator[None]:
    """The likeliest class of each pixel: logits (C, h, w) -> `out`, uint8 (H, W). Yields after each piece of work; here
    all is one piece.

    Logits are upsampled bilinearly to the padded input's size, cut to the image, and compared there.
    """
    large = F.interpolate(scores[None].float(), scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    # Over the first dimension, max is eight times as fast as argmax on a CPU, and gives the same indices.
    best = large[:, : frame.height, : frame.width].max(0).indices
    out[:] = best.to(torch.uint8).cpu().numpy()
    yield


def rendering(
    found: Exit,
    config: ModelConfig,
    frame: Frame,
    extra: Extra | None = None,
    *,
    out: MapMemory | None = None,
    labels: Labels = labels,
) -> Iterator[ExitMap | None]:
    """The map of one exit in pieces; see `AnytimeModel.rendering`. `labels`: makes a label map; executors may bring a
    faster one."""
    array, further = out or (None, None)
    if config.task == "pose":
        points = keypoints(found.scores, frame)
        array = np.empty_like(points) if array is None else array
        array[:] = points
    else:
        array = np.empty((frame.height, frame.width), np.uint8) if array is None else array
        for _ in labels(found.scores, frame, array):
            yield None
    if extra is not None:
        further = np.empty((frame.height, frame.width), np.uint8) if further is None else further
        for lines in bands(frame.height, frame.width):
            further[lines] = extra_map(found, config, frame, extra, lines)
            yield None
    yield ExitMap(found.index, array, found.active_share, further)


def whole(rendering: Iterator[ExitMap | None]) -> ExitMap:
    """The map at the end of a rendering."""
    *_, found = rendering
    assert found is not None
    return found


def peaks(heatmaps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The highest position of each heatmap, moved a quarter of a position towards its higher neighbour along both axes,
    as HRNet decodes (Sun et al., 2019): float32 (.., h, w) -> (.., 2), x and y in positions.

    In numpy, because torch would wake its threads, which then spin beside the CPU executor's own.
    """
    height, width = heatmaps.shape[-2:]
    maps = heatmaps.reshape(-1, height, width)
    y, x = np.divmod(maps.reshape(len(maps), -1).argmax(1), width)
    each = np.arange(len(maps))
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dx = np.sign(padded[each, y + 1, x + 2] - padded[each, y + 1, x])
    dy = np.sign(padded[each, y + 2, x + 1] - padded[each, y, x + 1])
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    points = np.stack([x + 0.25 * dx * inside, y + 0.25 * dy * inside], 1).astype(np.float32)
    return points.reshape(*heatmaps.shape[:-2], 2)


def keypoints(heatmaps: Tensor, frame: Frame) -> NDArray[np.float32]:
    """Heatmaps (J, h, w) -> float32 (J, 3): x and y in the image, and the peak's height; see `peaks`."""
    maps = heatmaps.float().cpu().numpy()
    # A strided convolution's position p is centred on input position STRIDE * p.
    points = frame.to_image(peaks(maps) * STRIDE)
    return np.concatenate([points, maps.max((1, 2))[:, None]], 1).astype(np.float32)


def extra_map(
    found: Exit, config: ModelConfig, frame: Frame, extra: Extra, lines: slice = slice(None)
) -> NDArray[np.uint8]:
    """The `lines` of a further map of an exit, uint8 (lines, W) at the image's size; for pose, it is 0 outside of the
    person's crop."""
    first, last, _ = lines.indices(frame.height)
    # Treat these lines as an image of their own; only the rows of positions that they read are passed on.
    row_px, height = STRIDE * frame.scale, found.mask.shape[0]
    low = min(max(math.floor((first - frame.top) / row_px) - 1, 0), height - 1)
    high = max(min(math.ceil((last - frame.top) / row_px) + 1, height), low + 1)
    part = replace(frame, height=last - first, top=frame.top + low * row_px - first)
    if extra == "confidence":
        sure = confidence(found.scores[None, :, low:high], config.task)[0].float().clamp(0, 1) * 255
        values = _placed(sure, part, "bilinear").round().to(torch.uint8)
    else:
        source = found.decided if extra == "exit" else found.mask
        values = _placed(source[None, low:high].float(), part, "nearest").to(torch.uint8)
    return values[0].cpu().numpy()


def _placed(values: Tensor, frame: Frame, mode: str) -> Tensor:
    """(C, h, w) -> (C, H, W), resized to the frame's place in the image, with zeros around it."""
    first, last = -frame.top, frame.height - frame.top  # lines of the network's input
    inside = first >= 0 and last <= STRIDE * values.shape[1] and frame.width <= STRIDE * values.shape[2]
    if inside and frame.left == 0 and frame.scale == 1 and first == int(first):
        # The image is neither scaled nor shifted by a fraction, so `F.interpolate` can resize it, which takes half of
        # the time of the gathers below.
        corners = False if mode == "bilinear" else None
        large = F.interpolate(values[None].float(), scale_factor=STRIDE, mode=mode, align_corners=corners)[0]
        return large[:, int(first) : int(last), : frame.width]
    y, beside_y = _sources(frame.height, frame.top, frame.scale, values.shape[1], values.device)
    x, beside_x = _sources(frame.width, frame.left, frame.scale, values.shape[2], values.device)
    if mode == "nearest":
        found = values[:, y.floor().long()][:, :, x.floor().long()]
    else:
        found = _between(_between(values, y - 0.5, 1), x - 0.5, 2)
    return found.masked_fill(beside_y[:, None] | beside_x, 0)


def _sources(pixels: int, start: float, scale: float, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row (or column) of an image: its distance from the outer edge of an exit's first position, in positions,
    float32 (pixels,), and whether it lies outside of all positions, bool (pixels,)."""
    at = (torch.arange(pixels, device=device) + 0.5 - start) / (STRIDE * scale)
    return at.clamp(0, positions - 1e-3), (at < 0) | (at >= positions)


def _between(values: Tensor, at: Tensor, dim: int) -> Tensor:
    """Linear interpolation along `dim`, at distances `at` (n,) from the centre of the first position."""
    last = values.shape[dim] - 1
    at = at.clamp(0, last)
    low = at.floor().long()
    share = (at - low).view([-1 if other == dim else 1 for other in range(values.ndim)])
    return values.index_select(dim, low).lerp(values.index_select(dim, (low + 1).clamp(max=last)), share)
