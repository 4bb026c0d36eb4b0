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
    models = [{"name": n, "task": c.task, "exits": c.exits, "labels": len(c.labels)} for n, c in configs.items()]
    if args.json:
        print(json.dumps(models))
    else:
        for model in models:
            print(f"{model['name']:24} {model['task']:14} {model['exits']} exits, {model['labels']} labels")
    return 0
