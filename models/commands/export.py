"""`python -m models export`: writes one ONNX graph for each exit, and compares them with the reference."""

import argparse
from pathlib import Path

from models.checkpoint import load_directory
from models.directory import resolve
from models.executors.onnx import TOLERANCE, difference, graphs, signatures
from models.network.adpc import AdpcNet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="a shipped model or a model directory")
    parser.add_argument("--format", choices=("onnx",), default="onnx")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="exit1.onnx .. are written there")


def main(args: argparse.Namespace) -> int:
    network = load_directory(resolve(args.model))
    if not isinstance(network, AdpcNet):
        family = network.config.family
        raise ValueError(f"{network.config.name} is of family {family}; only family adpc is exported")  # noqa: TRY004
    args.output.mkdir(parents=True, exist_ok=True)
    exported = graphs(network)
    for index, (graph, signature) in enumerate(zip(exported, signatures(network), strict=True), 1):
        path = args.output / f"exit{index}.onnx"
        path.write_bytes(graph)
        print(f"{path}: {', '.join(signature.inputs)} -> {', '.join(signature.outputs)}")
    worst = difference(network, exported)
    print(f"largest difference from the reference in ONNX Runtime: {worst:.1e} of the largest score")
    return 0 if worst <= TOLERANCE else 1
