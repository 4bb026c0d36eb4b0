"""python -m models.gpu_day.crops: saves the people of a pose data set in one file, small enough to send to a GPU.

Training takes the file in place of the data set's folder: `--data FILE`. Training crops have about the resolution of
their images, so they lose detail by compression only.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.data import datasets
from models.training import crops
from models.training.tasks import ROOM

LIMIT_MB = 24.0
"""The largest size of the file. With the default quality, LSP extended stays below it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.gpu_day.crops", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--side", type=int, default=192, help="side of a training crop, in pixels")
    parser.add_argument("--quality", type=int, default=45, help="WebP quality of a training crop, 0 to 100")
    parser.add_argument("--scored-side", type=int, default=256, help="side of a validation crop, in pixels")
    parser.add_argument("--scored-quality", type=int, default=60, help="WebP quality of a validation crop, 0 to 100")
    args = parser.parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    train, scored = datasets.people(args.data, "train"), datasets.people(args.data, "val")
    parts = {
        "train": (crops.Part(args.side, ROOM, args.quality), train),
        "val": (crops.Part(args.scored_side, 1.0, args.scored_quality), scored),
    }
    crops.save(args.output, parts)
    size_mb = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(train)} people to train on, {len(scored)} to score, {size_mb:.1f} MB")
    if size_mb > LIMIT_MB:
        print(f"that is more than {LIMIT_MB:g} MB; give a lower --quality or --side", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
