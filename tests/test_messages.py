import pickle

from server.engine.messages import Ended, JobSpec, Stop
from server.engine.shared_memory import Layout


def test_commands_and_events_cross_a_pipe() -> None:
    spec = JobSpec(1, "model", 64, Layout(2, 3, 4), 1.0, 1.5, 1.2, 4)
    ended = Ended(1, Stop.COMPLETE)
    assert pickle.loads(pickle.dumps((spec, ended))) == (spec, ended)


def test_stops_are_their_names() -> None:
    assert f"{Stop.MAX_EXIT}" == "max_exit"
