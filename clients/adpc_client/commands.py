"""Runs `adpc predict` and `adpc models`. `__main__` parses their command lines."""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from adpc_client.arguments import UsageError
from adpc_client.client import Client
from adpc_client.images import encode_image
from adpc_client.outputs import VIDEOS, check_folder, check_picture, save_picture
from adpc_client.results import Exit, Model, Prediction


def predict(args: argparse.Namespace) -> int:
    """Send one image and write the answer as a picture."""
    piped = args.image == "-"
    if args.output:
        check_picture(Path(args.output))
    else:
        check_folder("--output", Path())
    if Path(args.image).is_dir() or Path(args.image).suffix.lower() in VIDEOS:
        kind = "a folder" if Path(args.image).is_dir() else "a video"
        raise UsageError(f"{args.image} is {kind}; predict takes one image: use adpc stream {shlex.quote(args.image)}")
    data, _ = encode_image(sys.stdin.buffer.read() if piped else args.image)
    with Client(args.url, headers=request_headers(args)) as client:
        answer = client.predict(data, **request_options(args))
    output = Path(args.output or f"{'image' if piped else Path(args.image).stem}-exit-{answer.exit}.png")
    save_picture(answer, data, output, over_photo=args.overlay)
    if args.json:
        print(json.dumps(figures(answer, output)))
    else:
        print(
            f"exit {answer.exit}/{answer.exits} of {answer.model} ({answer.stop})  {answer.elapsed_ms:.1f} ms  "
            f"unsure {answer.unsure:.1%}  -> {output}"
        )
    return 0


def models(args: argparse.Namespace) -> int:
    """Print the models that the server offers, with the cost of each exit."""
    with Client(args.url, headers=request_headers(args)) as client:
        offered = client.models()
    if args.json:
        print(json.dumps([_model_figures(model) for model in offered]))
        return 0
    for model in offered:
        print(
            f"{model.name}  {model.task}, {len(model.labels.names)} {'joints' if model.task == 'pose' else 'classes'}"
        )
        for cost in model.exits:
            gmacs = "unknown" if cost.gmacs is None else f"{cost.gmacs:.2f} GMACs"
            time = "not measured yet" if cost.seconds is None else f"{1000 * cost.seconds:.1f} ms to compute"
            print(f"  exit {cost.exit}  {gmacs:>14}  {time}")
    return 0


def request_headers(args: argparse.Namespace) -> dict[str, str]:
    """The headers of every request: the API key that ADPC_KEY holds, unless `--header` replaces it, and `--header`."""
    given = dict(args.header)
    key = os.environ.get("ADPC_KEY", "").strip()
    authorized = any(name.lower() == "authorization" for name in given)
    return given if authorized or not key else {"Authorization": f"Bearer {key}", **given}


def request_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a request that the command line names."""
    names = ("model", "deadline_ms", "min_exit", "best_effort", "max_exit", "quality", "box", "classes", "roi")
    return {name: getattr(args, name) for name in names}


def figures(answer: Exit, output: Path) -> dict[str, Any]:
    """The figures that `--json` prints: the answer without its maps, and the path of the picture."""
    found: dict[str, Any] = {
        "exit": answer.exit,
        "exits": answer.exits,
        "final": answer.final,
        "elapsed_ms": answer.elapsed_ms,
        "unsure": answer.unsure,
        "size": answer.size,
        "output": str(output),
    }
    if isinstance(answer, Prediction):
        found |= {name: getattr(answer, name) for name in ("id", "model", "task", "stop", "deadline_ms")}
        found["timing"] = asdict(answer.timing)
    if answer.task == "pose":
        found["keypoints"] = answer.keypoints.tolist()
    else:
        shares = np.bincount(answer.mask.ravel(), minlength=len(answer.classes)) / answer.mask.size
        found["shares"] = {
            name: round(float(share), 4) for name, share in zip(answer.classes, shares, strict=False) if share
        }
    return found


def _model_figures(model: Model) -> dict[str, Any]:
    exits = [asdict(cost) for cost in model.exits]
    return {
        "name": model.name,
        "task": model.task,
        "labels": model.labels.names,
        "exits": exits,
        "licence": model.licence,
    }
