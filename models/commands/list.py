"""`python -m models list`: the shipped models."""

import argparse
import json
from pathlib import Path

from models.directory import ZOO, find_models, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=Path, default=ZOO, metavar="DIR", help="the folder that holds model directories"
    )
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    configs = {name: read_config(directory) for name, directory in find_models(args.models).items()}
    rows = [{"name": n, "task": c.task, "exits": c.exits, "labels": len(c.labels)} for n, c in configs.items()]
    if args.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['name']:24} {row['task']:14} {row['exits']} exits, {row['labels']} labels")
    return 0
