"""Options that several commands have, and what a threshold does to a configuration."""

import argparse
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

from models.executors.registry import AUTO, CHOICES, PRECISIONS
from models.imaging.geometry import Size
from models.network.configs import ModelConfig


def at_least_1(text: str) -> int:
    """A whole number of at least 1. Raises argparse's error on anything else."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; give 1 or more") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1; leave the option out for its default")
    return value


def check_installed(package: str) -> None:
    """Raises ModuleNotFoundError unless the package is installed. For what long work needs at its end."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)


def check_writable(folder: Path) -> None:
    """Raises PermissionError unless files can be written into `folder`. For what long work writes at its end."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"nothing can be written to {folder}; give a folder of yours, such as a copy of the model"
        )


def add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=CHOICES, default=AUTO)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=AUTO,
        help="auto: int8 where the model has scales and is measured to be faster (default: auto)",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=at_least_1, default=0, help="CPU threads; default: one for each usable core")


def add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, metavar="T", help="masking threshold instead of the model's")


def with_threshold(config: ModelConfig, threshold: float | None) -> ModelConfig:
    """The configuration under another masking threshold; None leaves its own. Raises ValueError if it has no masks."""
    if threshold is None:
        return config
    if config.masking is None:
        raise ValueError(f"{config.name} has no masks, so --threshold {threshold:g} has no meaning; leave it out")
    return replace(config, masking=replace(config.masking, threshold=threshold))


def parse_size(text: str) -> Size:
    """'1024x2048' -> (1024, 2048), height first. Raises argparse's error on anything else."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width, for example 1024x2048")
    return int(height), int(width)


def parse_shares(text: str) -> tuple[float, ...]:
    """'0.8,0.6,0.4' -> (0.8, 0.6, 0.4). Raises argparse's error on anything outside of 0..1."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = (-1.0,)
    if not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r} are not shares; write numbers from 0 to 1, for example 0.8,0.6,0.4")
    return shares


def parse_iterations(text: str) -> tuple[int, ...]:
    """'1,2,4' -> (1, 2, 4), sorted. Raises argparse's error on anything but whole numbers from 1."""
    try:
        found = {int(part) for part in text.split(",")}
    except ValueError:
        found = {0}
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not iterations; write whole numbers from 1, for example 1,2,4")
    return tuple(sorted(found))
