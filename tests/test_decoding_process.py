"""A decoding process as it really runs."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import live
import numpy as np
import pytest
import tiny

from server.decoding.__main__ import EXPENDABLE, limited_cpu
from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.decoding.process import ChildDecoder

PLAN = DecoderPlan(max_body_bytes=2**20, max_pixels=2**20, max_decode_s=5.0, nice=3)


def hear(decoder: ChildDecoder) -> DecoderAnswer:
    decoder.connection.settimeout(live.PATIENCE_S)
    return DecoderAnswer.from_line(decoder.connection.recv(4096), PLAN.max_pixels)


def ask(decoder: ChildDecoder, body: bytes) -> DecoderAnswer:
    decoder.memory[: len(body)] = body
    decoder.connection.send(b"%d\n" % len(body))
    return hear(decoder)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildDecoder]:
    monkeypatch.setenv("ANYTIME_SECRET", "key")
    found = ChildDecoder(PLAN)
    assert hear(found) == DecoderAnswer()
    yield found
    found.kill()
    found.wait()
    found.connection.close()


def test_it_decodes_and_goes_on_after_what_is_no_image(decoder: ChildDecoder) -> None:
    error = ask(decoder, b"hello, world").error
    assert error is not None and error.code == "not_an_image"
    for number in (signal.SIGTERM, signal.SIGINT):  # they reach the whole process group
        os.kill(decoder._process.pid, number)
    assert ask(decoder, live.photo()) == DecoderAnswer(60, 90)
    pixels = np.frombuffer(decoder.memory, np.uint8, 60 * 90 * 3, PLAN.pixels_at).reshape(60, 90, 3)
    assert (pixels == tiny.image()).all()
    del pixels
    process = Path(f"/proc/{decoder._process.pid}")
    assert b"ANYTIME_SECRET" not in (process / "environ").read_bytes()
    limits = (process / "limits").read_text()
    assert "Max open files            1                    1 " in limits
    assert "Max address space         unlimited" not in limits
    assert "Max file size             0                    0 " in limits
    assert int((process / "oom_score_adj").read_text()) == EXPENDABLE
    assert os.getpriority(os.PRIO_PROCESS, decoder._process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    assert "torch" not in (process / "maps").read_text()
    decoder.connection.close()
    assert decoder.wait() == 0


def test_what_takes_too_much_cpu_is_ended_by_the_system() -> None:
    ended: list[int] = []
    before = signal.signal(signal.SIGPROF, lambda number, _: ended.append(number))
    try:
        with limited_cpu(0.001):
            until_s = time.process_time() + live.PATIENCE_S
            while not ended and time.process_time() < until_s:
                pass
        assert ended == [signal.SIGPROF] and signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGPROF, before)
