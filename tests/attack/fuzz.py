"""Inputs that a fuzzer makes up, guided by the code that they reach: images, forms and messages of a WebSocket.

`PYTHONPATH=tests python tests/attack/fuzz.py --seconds 60` fuzzes each target so long, from the same seed every time,
and ends with status 1 on an input that is neither taken nor refused in a sentence, or that takes too long; it is left
in the folder of `--findings`. Words on the command line choose targets. The extra `fuzz` brings the fuzzer.
"""

import argparse
import asyncio
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from acceptance import verdict

try:
    import atheris
except ImportError:
    sys.exit("fuzz.py needs its fuzzer: pip install --editable '.[fuzz]'")

with atheris.instrument_imports(include=["server", "models.imaging", "PIL", "python_multipart", "starlette"]):
    from PIL import Image
    from starlette.requests import Request

    from server.decoding.decode import decode
    from server.errors import ServerError
    from server.protocols.http import _body
    from server.protocols.options import parse_json, parse_message

    Image.init()  # imports the readers of all formats, which are watched too

SLOW_S = 2.0
"""No input may take more CPU time; the watch on the code that is reached makes it several times slower."""
HUNG_S = 120
"""An input that takes so long hangs."""
MAX_BYTES = 1 << 14
"""The longest input; what matters in images and forms is at their beginning."""
MAX_PIXELS, MAX_BODY_BYTES = 1 << 18, 1 << 20
FORM = b"multipart/form-data; boundary=x"


def try_image(data: bytes) -> None:
    image = decode(data, MAX_PIXELS)
    assert image.ndim == 3 and image.shape[2] == 3 and image.shape[0] * image.shape[1] <= MAX_PIXELS


def try_form(data: bytes) -> None:
    """The first byte says in how many pieces the form comes."""
    pieces, body = 1 + data[0] % 8 if data else 1, data[1:]
    step = -(-len(body) // pieces) or 1
    parts = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    coming = iter(parts)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": next(coming), "more_body": coming.__length_hint__() > 0}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"content-type", FORM)]}
    assert isinstance(asyncio.run(_body(Request(scope, receive), MAX_BODY_BYTES)), bytes)


def try_message(data: bytes) -> None:
    message = parse_message(parse_json(data.decode(errors="surrogateescape").encode(errors="replace").decode()))
    assert message.id


def images() -> Iterator[bytes]:
    """A small picture in every format that is read."""
    picture = Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 20).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("PNG", {"pnginfo": None, "exif": exif}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ):
        for mode in ("RGB", "L", "P") if kind != "WEBP" else ("RGB",):
            if (kind, mode) != ("JPEG", "P"):
                file = io.BytesIO()
                picture.convert(mode).save(file, kind, **options)  # type: ignore[arg-type]
                yield file.getvalue()


def forms() -> Iterator[bytes]:
    field = (
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
    )
    for pieces in (b"\0", b"\5"):
        yield pieces + field % (b"image", b"data") + b"--x--\r\n"
        yield pieces + field % (b"other", b"data") + field % (b"image", b"") + b"--x--\r\n"
        yield pieces + b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n'
        yield pieces + b"--x\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: form-data\r\n\r\n--x--"


def messages() -> Iterator[bytes]:
    options = {"model": "m", "deadline_ms": 100, "min_exit": 1, "max_exit": "4", "quality": 0.1, "best_effort": True}
    more = {"map": "exit", "encoding": "delta", "box": [1, 2, 3.5, 4], "priority": 2}
    for message in (
        {"type": "predict", "id": "a", **options},
        {"type": "predict", "id": "b", **more, "box": "1,2,3,4"},
        {"type": "predict", "id": "\u00e9", **more},
        {"type": "cancel", "id": "a"},
        {"type": "deadline", "id": "a", "deadline_ms": 1e3},
    ):
        yield json.dumps(message).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "images": (try_image, images),
    "forms": (try_form, forms),
    "messages": (try_message, messages),
}


def fuzz(name: str, seconds: int, seed: int, findings: Path) -> None:
    """Fuzz a target in this process, which ends then."""
    attempt, examples = TARGETS[name]

    def try_one(data: bytes) -> None:
        began_s = time.process_time()
        try:
            attempt(data)
        except ServerError as error:
            assert str(error), "a refusal without a sentence"
        assert (took_s := time.process_time() - began_s) < SLOW_S, f"it took {took_s:.1f} s"

    findings.mkdir(parents=True, exist_ok=True)  # the fuzzer does not
    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(examples()):
            (Path(corpus) / str(number)).write_bytes(example)
        options = {
            "max_total_time": seconds,
            "seed": seed,
            "timeout": HUNG_S,
            "max_len": MAX_BYTES,
            "rss_limit_mb": 2048,
        }
        flags = [f"-{option}={value}" for option, value in options.items()]
        atheris.Setup([name, *flags, f"-artifact_prefix={findings}/{name}-", corpus], try_one)
        atheris.Fuzz()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("targets", nargs="*", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args(argv)
    passed = True
    for name in args.targets or TARGETS:
        child = os.fork()  # the fuzzer ends its process
        if not child:
            fuzz(name, args.seconds, args.seed, args.findings)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{'FAULT' if status else 'ok   '} {name}, {args.seconds} s", flush=True)
        passed &= not status
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
