"""Runs `adpc stream`. `__main__` parses its command line."""

import argparse
import glob
import json
import re
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

from adpc_client.commands import figures, request_headers, request_options
from adpc_client.errors import AdpcError, concerns_one_image
from adpc_client.follow import Follow, FollowRequest
from adpc_client.frames import ArrivedFrame, Source
from adpc_client.images import CAMERA_JPEG_QUALITY
from adpc_client.options import Options
from adpc_client.outputs import is_video, save_picture
from adpc_client.results import Exit
from adpc_client.sources import open_source
from adpc_client.standard_input import open_input
from adpc_client.transport import Endpoint
from adpc_client.video import VideoWriter

_FOLDER_FPS = 10.0
"""The pace of a video made of images that have none."""


def stream(args: argparse.Namespace) -> int:
    """Write a picture for every exit of every frame, or a video of the last ones, and end with totals.

    A paced source skips to its newest frame, unless `--every-frame`. A frame that fails by itself (a broken file, no
    exit in time) is reported, and the next one follows. The status is 0 if a frame was answered and none has failed; a
    frame of a paced source may be late.
    """
    if args.source == "-":
        source = open_input(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer), args.fps)
    else:
        source = open_source(args.source, args.fps)
    output = Path(args.output or f"{_name(args.source)}-exits")
    with ExitStack() as stack:
        video = stack.enter_context(VideoWriter(output)) if is_video(output) else None
        return _Streaming(args, source, output, video).run()


def _name(source: str) -> str:
    """Returns the name for the answers of a source: the name of the file without its ending, or that of the folder in
    which a glob looks for files."""
    if source == "-":
        return "image"
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        path = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
    name = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "-", name) or "frames"


class _Streaming:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, source: Source, output: Path, video: VideoWriter | None) -> None:
        self._args, self._source, self._output, self._video = args, source, output, video
        self._last_exits: Counter[int] = Counter()
        self._failed: list[str] = []
        request = FollowRequest(Options(**request_options(args)), bgr=False, jpeg_quality=CAMERA_JPEG_QUALITY)
        followed = replace(source, paced=False) if args.every_frame else source
        self._may_be_late = followed.paced
        self._follow = Follow(Endpoint(args.url, request_headers(args)), followed, request, on_exit=self._show)

    def run(self) -> int:
        began_s, frames, told = time.monotonic(), 0, None
        try:
            for frame in islice(self._follow.turns(), self._args.count):
                frames += 1
                found, error = self._follow.answer(frame), self._follow.error
                if found is not None:
                    self._last_exits[found.exit] += 1
                    self._film(frame, found)
                elif error is not None and error is not told:
                    self._report(frame, error)
                    told = error
        finally:
            if not self._source.still:
                self._tell_totals(frames, time.monotonic() - began_s)
        if self._failed:
            print("failed: " + ", ".join(self._failed), file=sys.stderr)
            return 1
        return 0 if self._last_exits else 1

    def _show(self, frame: ArrivedFrame, answer: Exit) -> None:
        """Write and print one exit."""
        file = self._output
        if self._video is None:
            stem = "" if self._source.still else f"frame-{frame.index:05d}-"
            file = self._output / f"{stem}exit-{answer.exit}.png"
            save_picture(answer, frame.image, file, over_photo=self._args.overlay)
        if self._args.json:
            print(json.dumps({"frame": frame.index, **figures(answer, file)}), flush=True)
        else:
            print(
                f"frame {frame.index}  exit {answer.exit}/{answer.exits}  {answer.elapsed_ms:8.1f} ms  "
                f"unsure {answer.unsure:6.1%}  -> {file}",
                flush=True,
            )

    def _film(self, frame: ArrivedFrame, found: Exit) -> None:
        """Add the last exit of a frame to the video, at the frame's own time."""
        if self._video is None:
            return
        if frame.due_s is not None:
            at_s = frame.due_s
        else:
            at_s = frame.came_s - self._follow.began_s if self._source.paced else frame.index / _FOLDER_FPS
        self._video.add(found.overlay(frame.image), at_s)

    def _report(self, frame: ArrivedFrame, error: AdpcError) -> None:
        name = f"{frame.image}: " if isinstance(frame.image, Path) and str(frame.image) not in str(error) else ""
        print(f"frame {frame.index}  {name}{error}", file=sys.stderr)
        if not self._may_be_late or concerns_one_image(error):
            self._failed.append(str(frame.image) if isinstance(frame.image, Path) else f"frame {frame.index}")

    def _tell_totals(self, frames: int, seconds: float) -> None:
        exits = ", ".join(f"{count} reached exit {exit}" for exit, count in sorted(self._last_exits.items()))
        line = (
            f"{frames} frames in {seconds:.1f} s: {exits or 'none was answered'}; "
            f"{frames - self._last_exits.total()} got no answer, {self._follow.dropped} were overtaken by newer ones"
        )
        print(line, file=sys.stderr if self._args.json else sys.stdout)
