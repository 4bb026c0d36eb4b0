"""`adpc` sends images to an anytime inference server, shows each exit as it comes, or puts the server under load.

Its exit status is 0 for success, 1 for a failure and 2 for wrong usage. This module parses the command line; `commands`
runs the commands.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from adpc_client import commands, stream_command
from adpc_client.arguments import UsageError, count, header, positive
from adpc_client.errors import AdpcError
from adpc_client.load import command, command_line

URL = "http://127.0.0.1:8000"
_FILES = {
    "predict": "give the path of an image, or - for standard input",
    "stream": "give an image, a video, a folder, a glob such as 'drive/*.jpg', camera:0, or - for standard input",
}
"""What the commands read, by name."""


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    args = _parser().parse_args(given)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
    except UsageError as error:
        args.parser.error(str(error))
    except (AdpcError, OSError, ValueError) as error:
        print(f"adpc {args.command}: {_sentence(error, args.command)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"adpc {args.command}: interrupted", file=sys.stderr)
    else:
        return status
    return 1


def _sentence(error: Exception, command: str) -> str:
    """What an error says, with a remedy for a file that cannot be read."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    remedy = _FILES.get(command, "check its name")
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename}; {remedy}"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder; {remedy}"
    return f"{error.filename} cannot be opened: {error.strerror}; {remedy}"


def _version() -> str:
    try:
        return f"adpc {version('adpc-client')}"
    except PackageNotFoundError:
        return "adpc, run from a checkout"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adpc", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", description="adpc help COMMAND lists the options of a command"
    )
    _predict_arguments(
        _command(subparsers, "predict", commands.predict, "send one image and write the answer as a picture")
    )
    _stream_arguments(
        _command(subparsers, "stream", stream_command.stream, "answer the frames of a camera, a video or a folder")
    )
    _command(
        subparsers, "models", commands.models, "list the models that the server offers, with the cost of each exit"
    )
    command_line.add_arguments(
        _command(subparsers, "load", command.run, "put the server under load and report how it answers")
    )
    return parser


def _command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=description, description=description, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument(
        "--url", default=os.environ.get("ADPC_URL", URL), help=f"URL of the server (default: ADPC_URL, or {URL})"
    )
    parser.add_argument(
        "--header",
        type=header,
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="header of every request; may be repeated. An API key is safer in ADPC_KEY, since others on this machine "
        "can read a command line",
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    if name not in ("models", "load"):  # a load test may ask a mix of models
        parser.add_argument("--model", metavar="NAME", help="model that answers (default: the server's)")
    return parser


def _request_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deadline-ms", type=positive, metavar="MS", help="deadline of each request (default: the server's)"
    )
    parser.add_argument("--min-exit", type=int, metavar="N", help="fail if the deadline comes before exit N")
    parser.add_argument("--best-effort", action="store_true", help="accept an earlier exit than --min-exit")
    parser.add_argument("--max-exit", type=int, metavar="N", help="stop after exit N")
    parser.add_argument(
        "--quality", type=float, metavar="SHARE", help="stop once at most this share of the pixels would still change"
    )
    parser.add_argument(
        "--classes", metavar="NAME,..", help="classes to send, by name or number; `adpc models --json` lists them"
    )
    parser.add_argument("--roi", type=_box, metavar="X,Y,W,H", help="region to compute in pixels, for segmentation")
    parser.add_argument("--box", type=_box, metavar="X,Y,W,H", help="box of the person in pixels, for pose models")
    parser.add_argument("--overlay", action="store_true", help="draw the mask over the photo (poses always are)")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file, or - for standard input")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="picture to write (default: IMAGE-exit-N.png in the current folder); its folder is made if it is missing, "
        "and a file that is there is replaced",
    )
    _request_arguments(parser)


def _stream_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="IMAGE|VIDEO|CAMERA",
        help="an image, a folder of images, a glob, an animation, a video file, camera:0, rtsp://.., or - for "
        "standard input",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER|VIDEO",
        help="folder of the pictures (default: SOURCE-exits in the current folder), or a video (.mp4, .mkv, .mov) of "
        "the last exits over their frames; missing folders are made, and files that are there are replaced",
    )
    parser.add_argument(
        "--fps", type=positive, metavar="N", help="frames a second of a folder, an animation or a video file"
    )
    parser.add_argument(
        "--every-frame", action="store_true", help="answer every frame, however late, not only the newest"
    )
    parser.add_argument("--count", type=count, metavar="N", help="stop after N frames")
    _request_arguments(parser)


def _box(text: str) -> tuple[float, ...]:
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in pixels") from error
    return x, y, width, height


if __name__ == "__main__":
    sys.exit(main())
