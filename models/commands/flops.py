"""`python -m models flops`: multiply-adds and parameters, as in the paper's tables."""

import argparse
import json

from models.commands.options import parse_shares, parse_size
from models.network.families import FAMILIES, config, imported
from models.network.flops import parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="default: the size in the paper's table")
    parser.add_argument("--active", type=parse_shares, default=(), metavar="p1,p2,p3", help="active shares after exits")
    parser.add_argument("--as-printed", action="store_true", help="what the paper prints, where that counts otherwise")
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    model = config(args.config)
    height, width = args.size or model.size
    count_rows = imported(FAMILIES[model.family].operations)
    rows = count_rows(model, height, width, args.active, as_printed=args.as_printed)
    count = parameters(model)
    if args.json:
        exits = [{"exit": index, "gmacs": value} for index, value in rows]
        print(json.dumps({"config": model.name, "size": [height, width], "params": count, "exits": exits}))
    else:
        print(f"{model.name} at {height}x{width}: {count:,} parameters")
        for index, value in rows:
            print(f"  exit {index}: {value:8.2f} GMACs")
    return 0
