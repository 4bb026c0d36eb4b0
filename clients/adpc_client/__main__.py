"""The command `adpc`: ask a server for a picture, watch its exits come, or put it under load.

Exit status: 0 done, 1 failed, 2 wrong usage. The commands themselves are in `commands`.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable

from adpc_client import commands
from adpc_client.errors import AdpcError

URL = "http://127.0.0.1:8000"


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except commands.UsageError as error:
        args.parser.error(str(error))
    except (AdpcError, OSError, ValueError) as error:
        print(f"adpc {args.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"adpc {args.command}: interrupted", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adpc", description=(__doc__ or "").partition("\n")[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    _predict_arguments(_command(subparsers, "predict", commands.predict, "one answer, written as a picture"))
    _stream_arguments(_command(subparsers, "stream", commands.stream, "every exit as it comes, each as a picture"))
    _load_arguments(_command(subparsers, "load", commands.run_load, "many requests at once, and what came back"))
    return parser


def _command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=description, description=description)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--url", default=os.environ.get("ADPC_URL", URL), help=f"the server (ADPC_URL, or {URL})")
    parser.add_argument("--model", metavar="NAME", help="default: the server's")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    return parser


def _request_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deadline-ms", type=float, metavar="MS", help="default: the server's")
    parser.add_argument("--min-exit", type=int, metavar="N", help="no answer rather than a shallower one")
    parser.add_argument("--best-effort", action="store_true", help="rather than none, less than --min-exit")
    parser.add_argument("--max-exit", type=int, metavar="N", help="go no deeper")
    parser.add_argument("--quality", type=float, metavar="SHARE", help="stop once fewer pixels would still change")
    parser.add_argument("--box", type=_box, metavar="X,Y,W,H", help="the person in the image, for pose")
    parser.add_argument("--overlay", action="store_true", help="blend the mask into the photo (a pose always is)")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a file, or - for standard input")
    parser.add_argument("--output", metavar="FILE", help="default: IMAGE-exit-N.png here")
    _request_arguments(parser)


def _stream_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="IMAGE|VIDEO|CAMERA",
        help="an image, a folder of images, an animation, a video file, or camera:0",
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: IMAGE-exits here")
    parser.add_argument("--fps", type=_positive, metavar="N", help="pace of a folder or an animation")
    parser.add_argument("--every-frame", action="store_true", help="answer each frame, however late, instead of newest")
    parser.add_argument("--count", type=_count, metavar="N", help="stop after N frames")
    _request_arguments(parser)


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive, metavar="R", help="open loop: R requests a second, at random moments")
    pace.add_argument("--concurrency", type=_count, default=4, metavar="N", help="closed loop: N users (default 4)")
    parser.add_argument("--count", type=_count, default=200, metavar="N", help="requests in all (default 200)")
    parser.add_argument(
        "--deadline-ms", type=_range, default=(200.0, 200.0), metavar="MS[-MS]", help="or a range (default 200)"
    )
    parser.add_argument("--cancel", type=_share, default=0.0, metavar="SHARE", help="0..1 given up at random moments")
    parser.add_argument("--protocol", choices=("http", "stream"), default="http")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="repeatable; default: a made scene"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yes", action="store_true", help="allow a server that is not this machine")


def _positive(text: str) -> float:
    return _number(text, "above 0", lambda value: 0 < value < math.inf)


def _count(text: str) -> int:
    return int(_number(text, "a whole number above 0", lambda value: value > 0 and value.is_integer()))


def _share(text: str) -> float:
    return _number(text, "between 0 and 1", lambda value: 0 <= value <= 1)


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    values = _positive(low), _positive(high or low)
    if values[0] > values[1]:
        raise argparse.ArgumentTypeError(f"{text} runs backwards; write {high}-{low}")
    return values


def _box(text: str) -> tuple[float, ...]:
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in pixels") from error
    return x, y, width, height


def _number(text: str, meaning: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be {meaning}")
    return value


if __name__ == "__main__":
    sys.exit(main())
