"""Runs `adpc predict` and `adpc stream`. `__main__` parses their command lines."""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adpc_client.client import Client
from adpc_client.draw import mask_picture, overlay
from adpc_client.errors import (
    AdpcError,
    BadInputError,
    ImageError,
    NoExitError,
    OverloadedError,
    RateLimitError,
    TooLargeError,
    UnsupportedImageError,
)
from adpc_client.frames import NewestFrame, SourceFrame, open_source
from adpc_client.images import encode_image
from adpc_client.results import Exit, Prediction

_ERRORS_OF_A_FRAME = (ImageError, NoExitError, OverloadedError, RateLimitError, TooLargeError, UnsupportedImageError)
"""After these errors the next frame of a source may succeed."""
_CODES_OF_A_FRAME = ("broken_image", "too_many_scans")
"""The codes of a BadInputError that concern the image. Others concern the options, which all frames share."""


def predict(args: argparse.Namespace) -> int:
    """Send one image and write the answer as a picture."""
    piped = args.image == "-"
    data, _ = encode_image(sys.stdin.buffer.read() if piped else args.image)
    with Client(args.url) as client:
        answer = client.predict(data, **_options(args))
    output = Path(args.output or f"{'image' if piped else Path(args.image).stem}-exit-{answer.exit}.png")
    _save(answer, data, output, args.overlay)
    if args.json:
        print(json.dumps(_figures(answer, output)))
    else:
        print(
            f"exit {answer.exit}/{answer.exits} of {answer.model} ({answer.stop})  {answer.elapsed_ms:.1f} ms  "
            f"unsure {answer.unsure:.1%}  -> {output}"
        )
    return 0


def stream(args: argparse.Namespace) -> int:
    """Write a picture for every exit of every frame. A paced source skips to its newest frame, unless `--every-frame`.

    A frame that fails by itself (a broken file, no exit in time) is reported, and the next one follows.
    """
    source = open_source(args.source, args.fps)
    folder = Path(args.output or f"{Path(args.source).stem.replace(':', '-')}-exits")
    folder.mkdir(parents=True, exist_ok=True)
    reader = NewestFrame(source.frames) if source.paced and not args.every_frame else nullcontext()
    exits = 0
    with Client(args.url) as client, reader as newest:
        frames: Iterator[SourceFrame] = source.frames if newest is None else iter(newest.take, None)
        for frame in islice(frames, args.count):
            stem = "" if source.still else f"frame-{frame.index:05d}-"
            try:
                exits += _stream_frame(client, frame, newest, f"{folder}/{stem}", args)
            except AdpcError as error:
                if source.still or not _concerns_one_frame(error):
                    raise
                print(f"frame {frame.index}  {error}", file=sys.stderr)
        if newest is not None and newest.dropped:
            print(f"{newest.dropped} frames were overtaken by newer ones", file=sys.stderr)
    return 0 if exits else 1


def _stream_frame(
    client: Client, frame: SourceFrame, newest: NewestFrame | None, prefix: str, args: argparse.Namespace
) -> int:
    """Stream one frame and return the number of its exits. Once it has one, a newer frame cancels it."""
    try:
        data, _ = encode_image(frame.image)
    except OSError as error:
        raise ImageError(f"the image cannot be read: {error}") from error
    exits = 0
    with client.stream(data, **_options(args)) as answers:
        for answer in answers:
            exits += 1
            file = Path(f"{prefix}exit-{answer.exit}.png")
            _save(answer, data, file, args.overlay)
            if args.json:
                print(json.dumps({"frame": frame.index, **_figures(answer, file)}), flush=True)
            else:
                print(
                    f"frame {frame.index}  exit {answer.exit}/{answer.exits}  {answer.elapsed_ms:8.1f} ms  "
                    f"unsure {answer.unsure:6.1%}  -> {file}",
                    flush=True,
                )
            if newest is not None and newest.waiting:
                answers.cancel()
    return exits


def _concerns_one_frame(error: AdpcError) -> bool:
    """Whether the next frame may succeed after this `error`."""
    if isinstance(error, BadInputError):
        return error.code in _CODES_OF_A_FRAME
    return isinstance(error, _ERRORS_OF_A_FRAME)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "deadline_ms", "min_exit", "best_effort", "max_exit", "quality", "box")
    return {name: getattr(args, name) for name in names}


def _save(answer: Exit, data: bytes, output: Path, over_photo: bool) -> None:
    if over_photo or answer.mask is None:
        with Image.open(io.BytesIO(data)) as photo:
            overlay(answer, photo).save(output)
    else:
        mask_picture(answer).save(output)


def _figures(answer: Exit, output: Path) -> dict[str, Any]:
    """The figures that `--json` prints: the answer without its maps, and the path of the picture."""
    figures: dict[str, Any] = {
        "exit": answer.exit,
        "exits": answer.exits,
        "final": answer.final,
        "elapsed_ms": answer.elapsed_ms,
        "unsure": answer.unsure,
        "size": answer.size,
        "output": str(output),
    }
    if isinstance(answer, Prediction):
        figures |= {name: getattr(answer, name) for name in ("id", "model", "task", "stop", "deadline_ms")}
        figures["timing"] = asdict(answer.timing)
    if answer.keypoints is not None:
        figures["keypoints"] = answer.keypoints.tolist()
    if answer.mask is not None:
        shares = np.bincount(answer.mask.ravel(), minlength=len(answer.classes)) / answer.mask.size
        figures["shares"] = {
            name: round(float(share), 4) for name, share in zip(answer.classes, shares, strict=False) if share
        }
    return figures
