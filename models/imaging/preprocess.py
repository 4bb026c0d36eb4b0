"""From an image to a network's input, and where that input lies in the image."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.imaging.geometry import MULTIPLE, STRIDE, Box, Frame, bands, person_square
from models.network.configs import ModelConfig

CUT_SIDE = 4096
"""The longest side, in pixels, of a person's square that is resized at once; a larger one is first reduced by a whole
factor."""


def prepare(
    image: NDArray[np.uint8], config: ModelConfig, box: Box | None = None, device: str = "cpu"
) -> tuple[Tensor, Frame]:
    """The input for a network, float32 (1, 3, H', W') on `device`, normalised and padded, and its frame.

    Takes the arguments of `cut` and raises its errors.
    """
    pixels, frame = cut(image, config, box)
    return pad(normalise(pixels, config, device)), frame


def cut(image: NDArray[np.uint8], config: ModelConfig, box: Box | None) -> tuple[NDArray[np.uint8], Frame]:
    """The pixels that a network sees, uint8 (h, w, 3), and their frame.

    `image`: uint8 (H, W, 3) RGB. Segmentation keeps the image's pixels. Pose cuts out the person's square and resizes
    it to `config.size`; without a `box` it takes the square around the whole image.
    Raises ValueError on another shape or dtype, and on a box that `geometry.check_box` refuses.
    """
    frame = locate(image, config, box)
    if config.task != "pose":
        return image, frame
    pixels = np.empty((*config.size, 3), np.uint8)
    for _ in resize_person(image, frame, pixels):
        pass
    return pixels, frame


def locate(image: NDArray[np.uint8], config: ModelConfig, box: Box | None) -> Frame:
    """The frame of what `cut` cuts out. Takes its arguments and raises its errors."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"the image is {image.dtype} {image.shape}; it must be uint8 (height, width, 3)")
    height, width = image.shape[:2]
    if config.task != "pose":
        return Frame(height, width)
    left, top, side = person_square(height, width, box)
    return Frame(height, width, left, top, side / config.size[0])


def resize_person(image: NDArray[np.uint8], frame: Frame, out: NDArray[np.uint8]) -> Iterator[None]:
    """Crops the square that `frame` describes and resizes it into `out`, uint8 (h, w, 3). `frame.scale` is the square's
    side over `h`. Yields after each band of lines."""
    lines, columns = out.shape[:2]
    (left, top, side), by = _reduced((round(frame.left), round(frame.top), round(frame.scale * lines)))
    margin = math.ceil(side / lines) + 1  # bilinear resizing reads no more lines before and after a band's own
    # Shrinking a pixel is a quarter of the work that `bands` expects.
    for band in bands(lines, math.ceil(side**2 * by**2 / lines / 4)):
        first, last = band.start * side / lines, band.stop * side / lines
        low, high = max(math.floor(first) - margin, 0), min(math.ceil(last) + margin, side)
        part = _crop(image, by, (left, top + low, side, high - low))
        size = columns, band.stop - band.start
        out[band] = np.asarray(part.resize(size, Image.Resampling.BILINEAR, (0, first - low, side, last - low)))
        yield


def crop_square(image: NDArray[np.uint8], square: tuple[int, int, int]) -> Image.Image:
    """The square (left, top, side) of an image uint8 (H, W, 3), reduced to at most `CUT_SIDE` a side. Pixels outside of
    the image are black, as in HRNet's crops."""
    (left, top, side), by = _reduced(square)
    return _crop(image, by, (left, top, side, side))


def _reduced(square: tuple[int, int, int]) -> tuple[tuple[int, int, int], int]:
    """A square in the image reduced by a whole factor, and that factor."""
    left, top, side = square
    by = -(-side // CUT_SIDE)
    return (left, top, side) if by == 1 else (round(left / by), round(top / by), round(side / by)), by


def _crop(image: NDArray[np.uint8], by: int, part: tuple[int, int, int, int]) -> Image.Image:
    """`part` (left, top, width, height) of an image reduced by the factor `by`."""
    left, top, width, height = part
    x, y = max(left, 0), max(top, 0)
    inside = image[by * y : max(by * (top + height), 0), by * x : max(by * (left + width), 0)]
    found = Image.new("RGB", (width, height))
    if inside.size:
        found.paste(Image.fromarray(inside).reduce(by), (x - left, y - top))
    return found


def normalise(image: NDArray[np.uint8], config: ModelConfig, device: str = "cpu") -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W), channels last in memory: (x / 255 - mean) / std."""
    if device == "cpu":
        lines, width = image.reshape(len(image), -1), image.shape[1]
        # Whole lines at once: numpy's loops over three colours take seven times as long.
        scale, shift = (np.tile(values, width) for values in normal(config))
        values = np.multiply(lines, scale, dtype=np.float32)
        values += shift
        return torch.from_numpy(values.reshape(image.shape)).permute(2, 0, 1)[None]
    # The image is sent as uint8, a quarter of the bytes of float32, from pinned memory, which the device reads itself.
    pixels = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
    pixels.numpy()[:] = image
    scale, shift = torch.from_numpy(np.stack(normal(config))).to(device)
    return torch.addcmul(shift, pixels.to(device, non_blocking=True), scale).permute(2, 0, 1)[None]


def normal(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factor that a pixel of 0..255 is multiplied by, and the shift that is added then: float32 (3,) each."""
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    return np.asarray(1 / (255 * std), np.float32), np.asarray(-mean / std, np.float32)


def pixels_of(inputs: Tensor, config: ModelConfig) -> Tensor:
    """The nearest pixels to normalised inputs (N, 3, H, W): whole numbers of 0..255 in float32, of the same shape."""
    factor, shift = (torch.from_numpy(values).to(inputs.device).view(3, 1, 1) for values in normal(config))
    return ((inputs - shift) / factor).round().clamp(0, 255)


def mean_pixel(config: ModelConfig) -> NDArray[np.float64]:
    """The pixel that is normalised to 0, float64 (3,). The nearest whole numbers are the padding of pixels."""
    factor, shift = (values.astype(np.float64) for values in normal(config))
    return np.asarray(-shift / factor)


def seen(config: ModelConfig, frame: Frame, shape: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of an exit's positions show the image and not the padding, for an input of `shape`
    (H, W). A person's crop is not padded."""
    height, width = shape if config.task == "pose" else (frame.height, frame.width)
    return -(-height // STRIDE), -(-width // STRIDE)


def check_input(inputs: Tensor, images: int | None = None) -> None:
    """Raises ValueError unless `inputs` are (N, 3, H, W) with H and W multiples of 32 above 0, and N equals `images` if
    that is given."""
    if inputs.ndim != 4 or inputs.shape[1] != 3 or images not in (None, len(inputs)):
        raise ValueError(f"the input is {tuple(inputs.shape)}; it must be ({images or 'N'}, 3, H, W)")
    height, width = inputs.shape[-2:]
    if height % MULTIPLE or width % MULTIPLE or not height or not width:
        raise ValueError(
            f"the input is {height}x{width}; both must be multiples of {MULTIPLE}, at least {MULTIPLE}: pad it"
        )


def pad(inputs: Tensor) -> Tensor:
    """`inputs` (N, 3, H, W) with zeros, which are the mean colour, below and to the right, up to multiples of 32."""
    height, width = inputs.shape[-2:]
    return F.pad(inputs, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
