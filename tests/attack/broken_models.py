"""Model directories that cannot be loaded: the server and the commands refuse each in a sentence, soon and with little
memory.

`PYTHONPATH=tests python tests/attack/broken_models.py` prints a line for each, and ends with status 1 if one was
loaded, hung, took much memory, or ended otherwise than in a sentence. Words on the command line choose them by name.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acceptance import ROOT, verdict

from models.directory import CONFIG_FILE, WEIGHTS_FILE

LIMIT_S, LIMIT_BYTES = 60.0, 2 * 2**30


def config(**changes: Any) -> Callable[[Path], None]:
    """Change fields of the configuration; `backbone.width` is written backbone__width."""

    def change(model: Path) -> None:
        data = json.loads((model / CONFIG_FILE).read_text())
        for name, value in changes.items():
            *path, last = name.split("__")
            (data[path[0]] if path else data)[last] = value
        (model / CONFIG_FILE).write_text(json.dumps(data))

    return change


def text(data: bytes, name: str = CONFIG_FILE) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).write_bytes(data)

    return write


def instead(make: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    def put(model: Path) -> None:
        (model / name).unlink()
        make(model / name)

    return put


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the bytes of the weights."""

    def write(model: Path) -> None:
        path = model / WEIGHTS_FILE
        path.write_bytes(change(path.read_bytes()))

    return write


DEEP = b"[" * 200_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
BROKEN: dict[str, Callable[[Path], None]] = {
    "deep configuration": text(DEEP),
    "deep object": text(b'{"a":' * 900 + b"1" + b"}" * 900),
    "configuration of NaN": text(b'{"name": NaN}'),
    "infinite mean": config(mean=[float("inf"), 0.5, 0.5]),
    "configuration not UTF-8": text(b'{"name": "\xff"}'),
    "endless configuration": instead(lambda path: path.symlink_to("/dev/zero"), CONFIG_FILE),
    "configuration a named pipe": instead(os.mkfifo, CONFIG_FILE),
    "configuration a folder": instead(Path.mkdir, CONFIG_FILE),
    "configuration a loop": instead(lambda path: path.symlink_to(path.name), CONFIG_FILE),
    "20,000 wide": config(backbone__width=20_000),
    "1,024 wide": config(backbone__width=1024),
    "a billion modules": config(backbone__modules=[1, 10**9, 1]),
    "16 modules a stage": config(backbone__modules=[16, 16, 16]),
    "a photo of 17 gigapixels": config(size=[131_072, 131_072]),
    "weights a named pipe": instead(os.mkfifo, WEIGHTS_FILE),
    "weights a folder": instead(Path.mkdir, WEIGHTS_FILE),
    "weights a device": instead(lambda path: path.symlink_to("/dev/zero"), WEIGHTS_FILE),
    "weights a loop": instead(lambda path: path.symlink_to(path.name), WEIGHTS_FILE),
    "weights missing": lambda model: (model / WEIGHTS_FILE).unlink(),
    "weights empty": text(b"", WEIGHTS_FILE),
    "weights a pointer of Git LFS": text(POINTER, WEIGHTS_FILE),
    "weights cut off": header(lambda data: data[: len(data) // 2]),
    "header too long": header(lambda data: b"\xff" * 8 + data[8:]),
    "header with another shape": header(lambda data: data.replace(b"[64,3,3,3]", b"[64,9,3,1]", 1)),
    "header with a larger shape": header(lambda data: data.replace(b"[64,3,3,3]", b"[64,3,9,3]", 1)),
    "header deep": header(lambda data: len(DEEP).to_bytes(8, "little") + DEEP + data),
}


def refused(name: str, folder: Path, *command: str) -> bool:
    """Whether a command ends with status 1 or 2 and a sentence, in time and with little memory."""
    began_s = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )
        pid, ended, used = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            time.sleep(0.05)
            if time.monotonic() - began_s > LIMIT_S:
                os.killpg(process.pid, signal.SIGKILL)
            pid, ended, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(ended)
        log.seek(0)
        said = log.read()
    took_s, peak_bytes = time.monotonic() - began_s, 1024 * used.ru_maxrss  # of the process and its workers
    sentences = [line for line in said.splitlines() if str(folder) in line]
    passed = process.returncode in (1, 2) and "Traceback" not in said and len(sentences) == 1
    passed &= took_s < LIMIT_S and peak_bytes < LIMIT_BYTES
    shown = re.sub(r"\S*/m/", "m/", sentences[0] if sentences else said[-300:])[:200]
    mark = "ok   " if passed else "FAULT"
    print(f"{mark} {name:29} {command[0]}: {took_s:4.1f} s, {peak_bytes / 2**20:5.0f} MiB: {shown}", flush=True)
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="words in the names of the directories; default: all")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "zoo" / "camvid-adpc-w18")
    args = parser.parse_args(argv)
    passed = True
    for name, spoil in BROKEN.items():
        if args.words and not any(word in name for word in args.words):
            continue
        with tempfile.TemporaryDirectory() as text_folder:
            folder = Path(text_folder)
            model = folder / "m"
            model.mkdir()
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(args.model / file, model / file)
            spoil(model)
            passed &= refused(name, folder, "server", "--port", "0", "--models", str(folder))
            photo = args.model / "example.jpg"
            passed &= refused(
                name,
                folder,
                "models",
                "run",
                str(model),
                "--input",
                str(photo),
                "--output",
                str(folder / "o.safetensors"),
            )
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
