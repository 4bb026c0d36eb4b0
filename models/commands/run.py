"""`python -m models run`: weights on one image or tensor, exit by exit, into a safetensors file."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.anytime import AnytimeModel, State, exits_of
from models.checkpoint import load_network
from models.commands.options import add_executor, add_precision, add_threshold, parse_iterations, with_threshold
from models.directory import WEIGHTS_FILE, read_config, resolve
from models.executors.reference import ReferenceExecutor
from models.executors.selection import build_fastest
from models.imaging.geometry import Frame
from models.imaging.images import read_image
from models.imaging.preprocess import pad, seen
from models.network.configs import ModelConfig
from models.network.families import CONFIGS
from models.network.mdeq_configs import FirstStep, MdeqConfig
from models.network.network import Network
from models.writing import write_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="CONFIG_OR_MODEL", help="a configuration, a shipped model or a model directory"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors or a released .pth; default: the model's"
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="image, or safetensors with `input`")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors: logits1.., map1..")
    add_threshold(parser)
    parser.add_argument(
        "--iterates",
        type=parse_iterations,
        metavar="K,..",
        help="of an MDEQ: decode the answers after these iterations",
    )
    parser.add_argument(
        "--first-step",
        choices=get_args(FirstStep),
        help="of an MDEQ: the sign of the solver's first step; published is that of the first published code",
    )
    add_executor(parser)
    add_precision(parser)


def main(args: argparse.Namespace) -> int:
    make = partial(_network, args.model, args.weights, lambda found: _changed(found, args))
    directory = _directory(args.model) if args.weights is None else None
    model, reason = build_fastest(make, args.device, args.executor, precision=args.precision, directory=directory)
    is_tensor = args.input.suffix == ".safetensors"
    state = model.start(*_tensor(args.input)) if is_tensor else model.begin(read_image(args.input))
    outputs = outputs_of(model, state, with_maps=not is_tensor)
    try:
        write_bytes(args.output, save(outputs))  # `save_file` would replace what is there, be it a device
    except OSError as error:
        raise ValueError(
            f"{args.output} cannot be written: {error.strerror}; name a file in a folder that is there"
        ) from error
    print(f"{args.output}: {', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in outputs.items())}")
    if reason:
        print(f"computed in {model.precision}: {reason}")
    return 0


def outputs_of(model: AnytimeModel, state: State, *, with_maps: bool) -> dict[str, Tensor]:
    """`logitsN`, float32 (1, C, ceil(h / 4), ceil(w / 4)) of the h x w input before padding, and `mapN`, for every exit
    N, and what else the network says of the input. An image is prepared as in the server, so that both compute the same
    maps, bit for bit."""
    outputs: dict[str, Tensor] = {}
    rows, columns = seen(model.config, state.frame, state.shape)
    for exit_index in exits_of(model, [state]):
        number = model.config.exit_numbers[exit_index - 1]
        outputs[f"logits{number}"] = state.latest().scores[None, :, :rows, :columns].float().cpu().contiguous()
        if with_maps:
            outputs[f"map{number}"] = torch.from_numpy(np.ascontiguousarray(model.render(state).array))
    if isinstance(model, ReferenceExecutor):
        outputs |= model.details(state)
    return outputs


def _changed(config: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    """The configuration with what the command line changes. Raises ValueError if the family lacks it."""
    config = with_threshold(config, args.threshold)
    wanted = {"decoded": args.iterates, "first_step": args.first_step}
    given = {name: value for name, value in wanted.items() if value is not None}
    if given and not isinstance(config, MdeqConfig):
        raise ValueError(f"{config.name} is no MDEQ; leave --iterates and --first-step out")
    return replace(config, **given)


def _directory(model: str) -> Path:
    """`resolve`, for a model that is named without weights. Raises ValueError."""
    try:
        return resolve(model)
    except ValueError as error:
        if model not in CONFIGS:
            raise
        raise ValueError(f"{model} is a configuration; name a file with its weights: --weights FILE") from error


def _network(model: str, weights: Path | None, change: Callable[[ModelConfig], ModelConfig]) -> Network:
    config: ModelConfig
    if weights is None or model not in CONFIGS:
        directory = resolve(model)
        config, weights = read_config(directory), weights or directory / WEIGHTS_FILE
    else:
        config = CONFIGS[model]
    return load_network(change(config), weights)[0]


def _tensor(path: Path) -> tuple[Tensor, Frame]:
    try:
        inputs = load_file(path).get("input")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if inputs is None or inputs.ndim != 4 or inputs.shape[:2] != (1, 3):
        shape = "missing" if inputs is None else tuple(inputs.shape)
        raise ValueError(f"`input` of {path} is {shape}; it must be float (1, 3, height, width)")
    return pad(inputs.float()), Frame(inputs.shape[2], inputs.shape[3])
