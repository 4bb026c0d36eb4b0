"""python -m models.gpu_day.crops: people of a pose data set in one file, small enough to be carried to a GPU.

The file takes the place of the data set's folder: `--data FILE`. Its training crops have about the resolution of the
images that they are cut from, so that no more detail is lost than by compression.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.data import datasets
from models.training import crops
from models.training.tasks import ROOM

LIMIT_MB = 24.0
"""Of the file; the default quality keeps LSP extended below it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.gpu_day.crops", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--side", type=int, default=192, help="of a training crop, in pixels")
    parser.add_argument("--quality", type=int, default=45, help="of a training crop as WebP, 0 to 100")
    parser.add_argument("--scored-side", type=int, default=256, help="of a validation crop, in pixels")
    parser.add_argument("--scored-quality", type=int, default=60, help="of a validation crop as WebP, 0 to 100")
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
