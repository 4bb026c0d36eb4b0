"""Streaming accuracy of a followed drive (Li et al., "Towards Streaming Perception", ECCV 2020).

pytest does not collect it.
`python tests/acceptance_follow.py --data CAMVID` starts a server, plays the val clip of CamVid at 15 frames a second
through `AsyncClient.follow`, and scores at the moment of every frame the newest mask that is available then, against
the labels of that frame. A mask is of an earlier frame by then: what takes long is good for a street that has gone.
Rows: anytime, whose deadline is the next frame; each exit alone, which takes as long as it takes; and the whole network
without masks. No other program should run, since all share the machine's cores.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acceptance import ROOT, Server
from adpc_client import Exit
from adpc_client.follow import AsyncFollow, FollowRequest
from adpc_client.frames import ArrivedFrame
from adpc_client.options import Options
from adpc_client.sources import open_source
from adpc_client.transport import Endpoint

from models.data import camvid
from models.data.scenes import VOID, Scene
from models.evaluation.scores import confusion, iou

LONG_MS = 5000.0
"""A deadline that no exit misses."""
DENSE = "dense"
CLASSES = 11


@dataclass(frozen=True)
class Available:
    """A mask that has been there since `at_s`, counted from the start of the drive, and the frame that it is of."""

    at_s: float
    frame: int
    exit: int
    mask: np.ndarray


@dataclass(frozen=True)
class Drive:
    """One play of the clip: every exit that came."""

    fps: float
    frames: int
    came: list[Available]

    def at(self, frame: int) -> Available | None:
        """What is available at the moment of a frame: the deepest exit of the newest frame."""
        there = [found for found in self.came if found.at_s <= frame / self.fps]
        return max(there, key=lambda found: (found.frame, found.exit), default=None)


async def play(url: str, scenes: list[Scene], fps: float, model: str, **options: Any) -> Drive:
    """Follow the clip at its pace."""
    came: list[Available] = []
    began_s: list[float] = []

    def images() -> Iterator[Path]:
        began_s.append(time.monotonic())
        yield from (scene.image_path for scene in scenes)

    def note(frame: ArrivedFrame, found: Exit) -> None:
        came.append(Available(time.monotonic() - began_s[0], frame.index, found.exit, found.mask))

    request = FollowRequest(Options(model, **options), bgr=False, jpeg_quality=None)
    async for _ in AsyncFollow(Endpoint(url), open_source(images(), fps), request, on_exit=note):
        pass
    return Drive(fps, len(scenes), came)


def miou(pairs: list[tuple[np.ndarray | None, np.ndarray]], classes: int) -> float:
    """Mean IoU in percent of (mask, labels). Where there is no mask yet, every pixel is wrong."""
    matrix = torch.zeros(classes + 1, classes + 1, dtype=torch.float64)
    for mask, labels in pairs:
        found = np.full_like(labels, classes) if mask is None else mask
        matrix += confusion(torch.from_numpy(found.copy()), torch.from_numpy(labels), classes + 1, VOID)
    return 100 * float(iou(matrix)[:classes].nanmean())


def score(drives: list[Drive], labels: list[np.ndarray], classes: int) -> dict[str, float]:
    """The figures of one row."""
    moments = [(drive, frame, drive.at(frame)) for drive in drives for frame in range(1, drive.frames)]
    shown = [(drive, frame, found) for drive, frame, found in moments if found is not None]
    lasts = [
        {found.frame: found for found in sorted(drive.came, key=lambda found: found.exit)}.values() for drive in drives
    ]
    last = [found for of_a_drive in lasts for found in of_a_drive]
    return {
        "streaming_miou": miou([(found and found.mask, labels[frame]) for _, frame, found in moments], classes),
        "own_frame_miou": miou([(found.mask, labels[found.frame]) for found in last], classes),
        "answered": len(last) / sum(drive.frames for drive in drives),
        "exit": statistics.fmean(found.exit for _, _, found in shown),
        "frames_old": statistics.fmean(frame - found.frame for _, frame, found in shown),
        "ms": 1000 * statistics.median(found.at_s - found.frame / drive.fps for drive, _, found in shown),
    }


def write_dense(model: Path, folder: Path) -> None:
    """The same weights without masks: no probability is above 1, so every exit computes every position."""
    config = json.loads((model / "config.json").read_text())
    config |= {"name": DENSE, "masking": config["masking"] | {"threshold": 1.0}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "int8.json"):
        if (model / name).exists():
            shutil.copy(model / name, folder / name)


async def compare(args: argparse.Namespace) -> None:
    scenes = camvid.read(args.data, "val")[: args.frames]
    labels = [scene.labels() for scene in scenes]
    rows = {"anytime": (args.model, {})}
    rows |= {f"exit {number} alone": (args.model, fixed(number)) for number in range(1, 5)}
    rows["whole network, no masks"] = (DENSE, fixed(4))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(args.models / args.model, Path(folder) / args.model)
        write_dense(args.models / args.model, Path(folder) / DENSE)
        async with Server(Path(folder)) as server:
            url = f"http://127.0.0.1:{server.port}"
            for fps in args.fps:
                print(f"\n{fps:g} frames a second, {len(scenes)} frames, {args.repeats} times")
                print("| | streaming mIoU | own frame's mIoU | answered | exit | frames old | ms until there |")
                print("|---|---|---|---|---|---|---|")
                for name, (model, options) in rows.items():
                    drives = [await play(url, scenes, fps, model, **options) for _ in range(args.repeats)]
                    found = score(drives, labels, CLASSES)
                    print(
                        f"| {name} | {found['streaming_miou']:.1f} | {found['own_frame_miou']:.1f} | "
                        f"{found['answered']:.0%} | {found['exit']:.2f} | {found['frames_old']:.2f} | "
                        f"{found['ms']:.0f} |",
                        flush=True,
                    )


def fixed(number: int) -> dict[str, Any]:
    """The options of a network that has this exit only: it takes as long as it takes."""
    return {"min_exit": number, "max_exit": number, "deadline_ms": LONG_MS}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="CAMVID", help="folder of CamVid")
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo", metavar="DIR")
    parser.add_argument("--model", default="camvid-adpc-w18")
    parser.add_argument("--fps", type=float, nargs="+", default=[15.0, 30.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, help="play only the first so many frames")
    asyncio.run(compare(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
