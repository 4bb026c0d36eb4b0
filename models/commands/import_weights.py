"""`python -m models import`: turns a released checkpoint into a model directory."""

import argparse
from dataclasses import replace
from pathlib import Path

from models.checkpoint import load_network, save_directory
from models.directory import CARD_FILE, CONFIG_FILE
from models.network.families import config

SHOWN = 8
"""Modules that are named in a message."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    parser.add_argument("--config", required=True, help="the named configuration that the weights belong to")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument("--name", help="name of the model; default: that of the configuration")
    parser.add_argument(
        "--backbone-only",
        action="store_true",
        help="take only the backbone, with random heads: for training from weights of another task",
    )
    parser.add_argument(
        "--inference-only",
        action="store_true",
        help="mask at inference only, each Lambda at its initial 3: for weights trained without masks (EE+RH)",
    )


def main(args: argparse.Namespace) -> int:
    model = config(args.config)
    if args.inference_only:
        if model.masking is None:
            raise ValueError(f"{model.name} has no masks; choose an adpc configuration, or leave --inference-only out")
        model = replace(model, masking=replace(model.masking, adaptivity="inference"))
    named = replace(model, name=args.name or model.name)
    network, left_out = load_network(named, args.file, backbone_only=args.backbone_only, maskless=args.inference_only)
    if (args.output / CONFIG_FILE).exists():
        raise ValueError(f"{args.output} holds a model; choose another --output")
    save_directory(args.output, network)
    card = args.output / CARD_FILE
    if not card.exists():
        card.write_text(f"# {network.config.name}\n\nImported from `{args.file.name}` as `{model.name}`.\n")
    print(f"{args.output}: {model.name}, {sum(p.numel() for p in network.parameters()):,} parameters")
    if left_out:
        modules = sorted({".".join(name.split(".")[:2]) for name in left_out})
        print(f"left out {len(left_out)} tensors that the network has no use for, of {', '.join(modules[:SHOWN])}")
    return 0
