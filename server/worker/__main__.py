"""The worker: the process that owns a device. The front end starts `python -m server.worker`; not for use by hand.

What takes long to import is imported once the lifeline holds.
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from server.engine.messages import LoadPlan, Ready, Unloadable
from server.engine.shared_memory import attach
from server.logs import configure_logging
from server.worker.lifeline import end_with

NICE = 5
"""The worker's niceness: the front end must get a core while the worker computes on all of them."""
EXPENDABLE = 500
"""Added to the share of memory, in thousandths, by which the system chooses whom to kill when memory runs out: rather a
worker than the front end, which starts another one."""


def main(fd: int) -> int:
    """Runs the worker: serves the front end over the socket `fd`, whose first message is the load plan."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole process group. The front end ends this process, after it has
    # finished its requests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with(fd)
    with suppress(OSError):  # elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE))
    with Connection(fd) as connection:
        try:
            return serve(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0  # the front end is gone; so are its requests


def serve(connection: Connection) -> int:
    """Load and warm up what the load plan names, and run jobs until the front end is gone."""
    from server.scheduling.costs import CostModel  # noqa: PLC0415 - see above
    from server.scheduling.gains import GainModel  # noqa: PLC0415
    from server.scheduling.scheduler import Scheduler  # noqa: PLC0415
    from server.worker.loading import facts, load_models, warm_up  # noqa: PLC0415
    from server.worker.process import Worker  # noqa: PLC0415

    plan: LoadPlan = connection.recv()
    configure_logging(plan.log_level, plan.log_format)
    costs = CostModel()
    try:
        models = load_models(plan)
    except (ValueError, OSError) as error:
        connection.send(Unloadable(str(error)))
        return 1
    costs.restore(plan.known)
    for name, loaded in models.items():
        warm_up(name, loaded.model, costs)
    first = next(iter(models.values())).model
    found = {name: facts(name, loaded, costs) for name, loaded in models.items()}
    gains = {name: loaded.gains for name, loaded in models.items() if loaded.gains}
    memory = attach(plan.arena_fd, plan.arena_bytes)
    step_back()
    # Collects once, then freezes: start-up objects, a scan of which takes 75 ms, are never scanned again.
    gc.collect()
    gc.freeze()
    connection.send(Ready(first.device, first.executor, found))
    Worker(connection, memory, models, Scheduler(costs, GainModel(gains))).run()
    return 0


def step_back() -> None:
    """Lower the priority of all threads. Not before the worker is ready: until then, requests wait for it."""
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]  # elsewhere: the whole process
    for thread in threads:
        os.setpriority(os.PRIO_PROCESS, thread, NICE)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
