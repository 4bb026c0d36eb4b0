"""`python -m models show`: one model: its configuration, labels, and what each exit costs."""

import argparse
import json

from models.directory import CARD_FILE, read_config, resolve
from models.network.flops import gmacs, parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="a shipped model or a model directory")
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    config = read_config(directory)
    costs = gmacs(config, *config.size)
    if args.json:
        exits = [{"exit": index, "gmacs": value} for index, value in enumerate(costs, 1)]
        print(json.dumps({"config": config.to_json(), "params": parameters(config), "exits": exits}))
        return 0
    print(f"{config.name}: {config.task}, {parameters(config):,} parameters, licence: {config.licence or 'not stated'}")
    print(f"labels: {', '.join(config.labels)}")
    for index, value in enumerate(costs, 1):
        print(f"exit {index}: {value:8.3f} GMACs at {config.size[0]}x{config.size[1]}, nothing masked")
    card = directory / CARD_FILE
    if card.is_file():
        print(f"\n{card.read_text()}")
    return 0
