"""What a worker tells while it loads."""

import threading

import live
import pytest

from server.engine.messages import Beat, Event, Loading
from server.worker import progress
from server.worker.progress import LoadingProgress


def test_parts_are_told_and_between_them_that_the_worker_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BEAT_S", 0.0)
    sent: list[Event] = []
    beaten = threading.Event()

    def send(event: Event) -> None:
        sent.append(event)
        if event == Beat():
            beaten.set()

    told = LoadingProgress(send)
    told.part("reading m", 5.0)
    assert sent == [Loading("reading m", 5.0)] and told.doing == "reading m"
    told.begin()
    assert beaten.wait(live.PATIENCE_S)
    told.end()
    beats = len(sent)
    told.part("counting", 1.0)
    assert sent[beats:] == [Loading("counting", 1.0)] and Beat() in sent


def test_two_threads_do_not_send_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may take the socket several writes, so whoever sends holds the lock."""
    monkeypatch.setattr(progress, "BEAT_S", 0.0)
    lock, beaten = threading.RLock(), threading.Event()
    held: set[tuple[type[Event], bool]] = set()

    def send(event: Event) -> None:
        held.add((type(event), lock._is_owned()))  # type: ignore[attr-defined]
        if event == Beat():
            beaten.set()

    told = LoadingProgress(send)
    told._lock = lock  # type: ignore[assignment]
    told.begin()
    told.part("reading m", 1.0)
    assert beaten.wait(live.PATIENCE_S)
    told.end()
    assert held == {(Loading, True), (Beat, True)}


def test_signs_of_life_end_with_the_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BEAT_S", 0.0)

    def gone(_: Event) -> None:
        raise BrokenPipeError

    told = LoadingProgress(gone)
    told.begin()
    told._thread.join(live.PATIENCE_S)
    assert not told._thread.is_alive()
    with pytest.raises(BrokenPipeError):
        told.part("reading m", 1.0)
