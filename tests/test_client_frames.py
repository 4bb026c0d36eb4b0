"""Frames on their way: every one of them, or always the newest, with the pace at which they come."""

import threading

import pytest
from adpc_client import ImageError
from adpc_client.frames import EveryFrame, NewestFrame, Source, SourceFrame


def source(frames, **facts):
    return Source(iter(frames), paced=True, **facts)


def test_the_newest_frame_wins():
    """Frames 0 to 3 come while nobody takes one; then 4 comes alone."""
    pumped, go_on, told = threading.Event(), threading.Event(), []

    def frames():
        for index in range(4):
            yield SourceFrame(index, b"")
        pumped.set()
        go_on.wait(10)
        yield SourceFrame(4, b"")

    newest = NewestFrame(source(frames()), on_frame=lambda: told.append(newest.waiting))
    with newest:
        pumped.wait(10)
        assert newest.waiting and newest.ready
        assert newest.take().index == 3
        assert not newest.waiting and not newest.ready
        go_on.set()
        assert newest.take().index == 4
        assert newest.take() is None
    assert newest.dropped == 3
    assert told[:4] == [True] * 4 and len(told) == 6  # the last is the end


def test_frames_wait_until_they_are_due():
    slept = []
    frames = source([SourceFrame(0, b"", 0.0), SourceFrame(1, b"", 0.5), SourceFrame(2, b"", None)])
    with NewestFrame(frames, clock=lambda: 100.0, sleep=slept.append) as newest:
        while newest.take() is not None:
            pass
    assert slept == [0.5]


def test_the_usual_time_between_frames_is_the_median_of_the_last():
    moments = [0.0, 0.0, 0.1, 0.2, 0.9, 1.0]  # the first is the start of the source; one frame was late
    clock = iter([moments[0], *(moment for moment in moments[1:] for _ in range(2))])
    taken, turn = [], threading.Semaphore(0)

    def frames():
        for index in range(5):
            yield SourceFrame(index, b"")
            turn.acquire()

    with NewestFrame(source(frames(), period_s=0.04), clock=lambda: next(clock)) as newest:
        while (frame := newest.take()) is not None:
            taken.append(frame)
            turn.release()
    assert [frame.came_s for frame in taken] == moments[1:]
    assert [frame.period_s for frame in taken] == pytest.approx([0.04, 0.1, 0.1, 0.1, 0.1])


def test_what_a_source_raises_is_raised_to_the_reader():
    def frames():
        yield SourceFrame(0, b"")
        raise ImageError("broken film")

    with NewestFrame(source(frames())) as newest, pytest.raises(ImageError, match="broken film"):
        while newest.take() is not None:
            pass


def test_leaving_stops_a_source_that_never_ends():
    with NewestFrame(source(SourceFrame(index, b"", index * 3600.0) for index in range(2))) as newest:
        assert newest.take().index == 0
    assert not newest._thread.is_alive()
    assert newest.take() is None


def test_every_frame_is_read_when_it_is_taken():
    begun = []
    frames = (begun.append(index) or SourceFrame(index, index, 0.1 * index) for index in range(2))
    with EveryFrame(Source(frames), clock=lambda: 7.0) as every:
        first = every.take()
        assert begun == [0] and not every.waiting and every.ready
        assert (first.image, first.came_s, first.due_s) == (0, 7.0, 0.0)
        assert every.take().index == 1 and every.take() is None
    assert every.dropped == 0
