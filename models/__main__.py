"""python -m models: everything about models that is not serving. Each command is a module of `models/commands` with
`add_arguments(parser)` and `main(args) -> exit status`, and is imported only when it is called.
"""

import argparse
import importlib
import sys

COMMANDS = {
    "list": ("models.commands.list", "the shipped models"),
    "show": ("models.commands.show", "one model: configuration, labels, what each exit costs"),
    "flops": ("models.commands.flops", "multiply-adds and parameters, counted as in the paper"),
    "run": ("models.commands.run", "run weights on an image or a tensor, exit by exit"),
    "import": ("models.commands.import_weights", "turn a released checkpoint into a model directory"),
    "export": ("models.commands.export", "write one ONNX graph for each exit"),
    "train": ("models.commands.train", "train a configuration"),
    "evaluate": ("models.commands.evaluate", "score every exit of a model on a data set"),
    "calibrate": ("models.commands.calibrate", "find where a model may stop early at a given quality"),
    "quantise": ("models.commands.quantise", "find the scales of a model in eight bits, and what it loses by them"),
    "picture": ("models.commands.picture", "a picture of every exit: prediction, confidence, inactive positions"),
    "pckh": ("models.commands.pckh", "PCKh of a file of predictions on MPII"),
    "compare": ("models.commands.compare", "the paper's comparisons: train, score and plot every row"),
    "bench": ("models.commands.bench", "seconds to every exit, side by side with other runtimes"),
    "gpu-day": ("models.commands.gpu_day", "check, measure or train on a GPU that is available for minutes only"),
}


PROGRAM = "python -m models"
EXTRAS = {
    "matplotlib": "train",
    "nncf": "nncf",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "bench",
    "scipy": "train",
    "triton": "gpu",
}
"""The optional packages that commands need, each with the extra that brings it."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells give it: 128 and the signal's number."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    try:
        return call(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt as interrupt:
        print(f"{PROGRAM}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def call(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(". ")[0], allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True)
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, description) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=description, description=description, allow_abbrev=False)
        if name == called:
            importlib.import_module(module).add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(COMMANDS[args.command][0]).main(args))
    except argparse.ArgumentError as error:  # options that do not go together
        subparsers.choices[args.command].error(str(error))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM} {args.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        remedy = f"pip install --editable '.[{EXTRAS[package]}]'"
        print(f"{PROGRAM} {args.command}: it needs {package}: {remedy}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
