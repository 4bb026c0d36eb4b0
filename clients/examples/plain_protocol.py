"""Speaks to the server without this package, with httpx and websockets: `python plain_protocol.py PHOTO.jpg [URL]`.

It writes the mask into the current folder, as PHOTO-mask.png. The same few lines can be written in any language: one
POST for one answer, or one WebSocket for every exit.
"""

import base64
import io
import json
import sys
from pathlib import Path

import httpx
from PIL import Image
from websockets.sync.client import connect


def predict(photo: bytes, url: str, deadline_ms: float) -> Image.Image:
    """The best mask that is there by the deadline, as an indexed picture."""
    answer = httpx.post(f"{url}/v1/predict", params={"deadline_ms": deadline_ms}, content=photo, timeout=30)
    body = answer.json()
    if not answer.is_success:
        raise RuntimeError(body["error"])  # says the number, the limit and the remedy
    print(f"exit {body['exit']} of {body['exits']} after {body['elapsed_ms']:.0f} ms ({body['stop']})")
    return Image.open(io.BytesIO(base64.b64decode(body["mask"]["data"])))


def stream(photo: bytes, url: str, deadline_ms: float) -> Image.Image | None:
    """Every exit as it comes. Returns the last mask, None if there was none in time."""
    mask = None
    with connect(f"{url.replace('http', 'ws', 1)}/v1/stream", max_size=None) as socket:
        socket.send(json.dumps({"type": "predict", "id": "a", "deadline_ms": deadline_ms, "encoding": "png"}))
        socket.send(photo)
        while (message := json.loads(socket.recv()))["type"] != "end":
            if message["type"] == "error":
                raise RuntimeError(message["error"])
            if message["type"] == "exit":
                mask = Image.open(io.BytesIO(socket.recv()))  # the binary frame after the header
                print(f"exit {message['exit']} after {message['elapsed_ms']:.0f} ms")
    return mask


def main(path: str, url: str = "http://localhost:8000") -> None:
    photo = Path(path).read_bytes()
    mask = Path(f"{Path(path).stem}-mask.png")
    if mask.exists():
        sys.exit(f"{mask} is there already; move it away, or run this in another folder")
    predict(photo, url, deadline_ms=500).save(mask)
    print(f"the mask is in {mask}")
    stream(photo, url, deadline_ms=500)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python plain_protocol.py PHOTO.jpg [URL]")
    main(*sys.argv[1:])
