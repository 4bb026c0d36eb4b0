"""The server's answers as frozen values; their numpy arrays are read-only."""

import io
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpc_client.draw import blend_mask, draw_skeleton, fit_photo, mask_picture
from adpc_client.errors import AdpcError
from adpc_client.images import ImageSource, open_image
from adpc_client.labels import Labels
from adpc_client.supervision import mask_detections, pose_keypoints

Task = Literal["segmentation", "pose"]
Stop = Literal["complete", "quality", "deadline", "cancelled", "max_exit"]


@dataclass(frozen=True)
class Timing:
    """The server's time in milliseconds, part by part. `compute_ms` has one entry for each exit."""

    decode_ms: float
    queue_ms: float
    compute_ms: tuple[float, ...]
    encode_ms: float


@dataclass(frozen=True, eq=False)
class Exit:
    """The answer of one exit.

    `exit` is its number, counted from 1, and `exits` the number of exits that the model has. `final` tells that no
    better answer will come. `elapsed_ms` counts from the moment when the server saw the request. `unsure`, 0..1, is the
    share of the image that the next exit would still compute. `size` is (height, width). `extra`, uint8 (H, W), is the
    second map if the request named one. `meta` is that of the request.

    A segmentation has `mask` and a pose has `keypoints`; `task` tells which. The other one raises AttributeError.
    """

    exit: int
    exits: int
    final: bool
    elapsed_ms: float
    unsure: float
    size: tuple[int, int]
    labels: Labels
    extra: NDArray[np.uint8] | None
    _mask: NDArray[np.uint8] | None
    _keypoints: NDArray[np.float32] | None
    meta: str | None = field(default=None, kw_only=True)

    @property
    def task(self) -> Task:
        return "segmentation" if self._keypoints is None else "pose"

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The class number of each pixel, uint8 (H, W); 255 outside the `classes` and the `roi` of the request."""
        if self._mask is None:
            raise AttributeError("a pose has no mask; it has keypoints")
        return self._mask

    @property
    def keypoints(self) -> NDArray[np.float32]:
        """x and y in pixels of the image and a score for each joint, float32 (J, 3)."""
        if self._keypoints is None:
            raise AttributeError("a segmentation has no keypoints; it has a mask")
        return self._keypoints

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class number in `mask`, or of each joint for pose."""
        return self.labels.names

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The RGB colour of each class, uint8 (C, 3)."""
        return self.labels.palette

    def picture(self) -> Image.Image:
        """The mask as an indexed picture, whose pixels are the class numbers; or the skeleton on black."""
        if self.task == "segmentation":
            return mask_picture(self.mask, self.labels)
        return draw_skeleton(Image.new("RGB", self.size[::-1]), self.keypoints, self.labels)

    def overlay(self, image: ImageSource, opacity: float = 0.6, *, bgr: bool = False) -> Image.Image:
        """`image` as RGB with the mask blended into it, or with the skeleton drawn on it.

        The picture has the size of the image that was sent: an `image` of another size is scaled to that.
        `opacity` is the weight of the mask: 0 shows only the image, 1 only the mask. An array is BGR if `bgr` is set.
        Raises ImageError if this is no image, and OSError if its file cannot be read.
        """
        photo = open_image(image, bgr=bgr)
        if self.task == "segmentation":
            return blend_mask(photo, self.mask, self.labels, opacity)
        return draw_skeleton(fit_photo(photo, self.size), self.keypoints, self.labels)

    def to_supervision(self) -> Any:
        """`supervision.Detections` with one detection for each class, or `supervision.KeyPoints` for a pose.

        Raises ImportError if the package supervision is not installed.
        """
        if self.task == "segmentation":
            return mask_detections(self.mask, self.labels)
        return pose_keypoints(self.keypoints)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.picture().save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True, eq=False)
class Prediction(Exit):
    """The answer of `predict`: the deepest exit that the deadline allowed. `stop` tells why no deeper exit came."""

    id: str
    model: str
    stop: Stop
    deadline_ms: float | None
    timing: Timing


@dataclass(frozen=True, eq=False)
class Latest(Exit):
    """The latest answer while a source is followed.

    `index`, counted from 0, and `frame` are those of the frame that it answers. `age_s` is the time since that frame
    came. `error` tells why the newest frame has no answer of its own; it is None if this is the answer to it.
    """

    index: int
    frame: Any
    age_s: float
    error: AdpcError | None


@dataclass(frozen=True)
class End:
    """How a stream ended.

    `exit` is the latest exit that the server finished, 0 if none. `skipped` holds the exits that the server did not
    send, because a newer one was ready before the connection could take them.
    """

    exit: int
    stop: Stop
    elapsed_ms: float
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExitCost:
    """The cost of an exit, counted from the image: `gmacs` in 2^30 multiply-adds, `seconds` as measured by the server.

    Each is None if the server does not know it.
    """

    exit: int
    gmacs: float | None
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Model:
    """A model that the server offers."""

    name: str
    task: Task
    exits: tuple[ExitCost, ...]
    labels: Labels
    licence: str
