import pickle

import numpy as np
import pytest

from server.engine.messages import Ended, Layout, Stop, Submit


@pytest.mark.parametrize(
    "layout", [Layout(7, 5, 4), Layout(7, 5, 4, extra=True), Layout(7, 5, 4, joints=16, extra=True)]
)
def test_every_array_has_a_place_of_its_own(layout: Layout) -> None:
    block = memoryview(bytearray(layout.total_bytes))
    arrays: list[np.ndarray] = [layout.image(block)]
    for exit_index in range(1, 5):
        arrays.append(layout.keypoints(block, exit_index) if layout.joints else layout.labels(block, exit_index))
        if layout.extra:
            arrays.append(layout.extra_map(block, exit_index))
    for value, array in enumerate(arrays):
        array[:] = value
    for value, array in enumerate(arrays):
        assert (array == value).all()
    assert arrays[0].shape == (7, 5, 3)
    assert arrays[1].shape == ((16, 3) if layout.joints else (7, 5))


def test_commands_and_events_cross_a_pipe() -> None:
    submit = Submit(1, "model", 64, Layout(2, 3, 4), 1.5, 1.0, 1, 4)
    ended = Ended(1, Stop.COMPLETE)
    assert pickle.loads(pickle.dumps((submit, ended))) == (submit, ended)


def test_stops_are_their_names() -> None:
    assert f"{Stop.MAX_EXIT}" == "max_exit"
