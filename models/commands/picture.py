"""`python -m models picture`: draw what every exit says of an image, how sure it is, and what it leaves out."""

import argparse
from pathlib import Path

from models.checkpoint import load_directory
from models.commands.options import add_executor, add_threshold, with_threshold
from models.directory import resolve
from models.evaluation.picture import draw, view_exits
from models.executors.selection import build
from models.imaging.geometry import Box
from models.imaging.images import read_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where NAME-MODEL.png go; default: here"
    )
    add_executor(parser)
    add_threshold(parser)
    parser.add_argument(
        "--box", type=box, metavar="X,Y,W,H", help="the person in the images, for pose; default: the whole image"
    )


def box(text: str) -> Box:
    """`X,Y,W,H`. Raises ValueError on anything else."""
    x, y, width, height = (float(part) for part in text.split(","))
    return x, y, width, height


def main(args: argparse.Namespace) -> int:
    network = load_directory(resolve(args.model))
    network.config = with_threshold(network.config, args.threshold)
    if args.box is not None and network.config.task != "pose":
        raise ValueError(f"--box is for pose; {network.config.name} does segmentation: leave it out")
    model = build(network, args.device, args.executor)
    args.output.mkdir(parents=True, exist_ok=True)
    outputs = [args.output / f"{path.stem}-{model.config.name}.png" for path in args.images]
    if len(set(outputs)) < len(outputs):
        raise ValueError("two images have the same name, so their pictures would too; give them in two calls")
    for path, output in zip(args.images, outputs, strict=True):
        image = read_image(path)
        views, frame = view_exits(model, image, args.box)
        draw(image, views, frame, model.config, f"{path.name}, {model.config.name}").savefig(output)
        print(output)
    return 0
