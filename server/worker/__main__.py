"""The worker: the process that owns a device. The front end starts `python -m server.worker`; not for use by hand.

What takes long to import is imported once the lifeline holds.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from server.engine.messages import IN_RESERVE, Imported, LoadPlan, Ready
from server.engine.shared_memory import attach
from server.garbage import collect_seldom
from server.logs import configure_logging
from server.time_slices import take_usual_time_slices
from server.worker.lifeline import end_with
from server.worker.progress import LoadingProgress

NICE = 5
"""The worker's niceness: the front end must get a core while the worker computes on all of them."""
LEAST_NICE = 19
"""The niceness of the thread that imports for a process in reserve, where SCHED_IDLE is missing or forbidden."""
EXPENDABLE = 500
"""The process's oom_score_adj (proc(5)): when memory runs out, the kernel kills a worker before the front end, which
starts another one."""


def main(fd: int, *, in_reserve: bool) -> int:
    """Runs the worker: serves the front end over the socket `fd`, whose first message is the load plan. `in_reserve`:
    the plan may come late, or never."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole process group. The front end ends this process, after it has
    # finished its requests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    take_usual_time_slices()
    end_with(fd)
    with suppress(OSError):  # elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE))
    with Connection(fd) as connection:
        try:
            return serve(connection, in_reserve=in_reserve)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0  # the front end is gone; so are its requests


def serve(connection: Connection, *, in_reserve: bool) -> int:
    """Load and warm up what the load plan names, and run jobs until the front end is gone."""
    progress = LoadingProgress(connection.send)
    plan = load_plan(connection, in_reserve=in_reserve)
    progress.begin()
    from server.scheduling.costs import CostModel  # noqa: PLC0415 - see above
    from server.scheduling.gains import GainModel  # noqa: PLC0415
    from server.scheduling.scheduler import Scheduler  # noqa: PLC0415
    from server.worker.loading import facts, failure, load_models, warm_up  # noqa: PLC0415
    from server.worker.process import Worker  # noqa: PLC0415

    configure_logging(plan.log_level, plan.log_format)
    costs = CostModel()
    try:
        models = load_models(plan, progress)
        costs.restore(plan.known)
        for name, loaded in models.items():
            max_batch = warm_up(name, loaded.model, costs, progress, plan.max_batches.get(name, 1))
            models[name] = replace(loaded, max_batch=max_batch)
        found = {name: facts(name, loaded, costs, progress) for name, loaded in models.items()}
    except Exception as error:  # the boundary: what lies in a model directory makes torch raise anything
        progress.end()
        if (failed := failure(error, progress.doing, served=bool(plan.known))) is not None:
            connection.send(failed)
        return 1
    first = next(iter(models.values())).model
    gains = {name: loaded.gains for name, loaded in models.items() if loaded.gains}
    memory = attach(plan.arena_fd, plan.arena_bytes)
    step_back()
    collect_seldom()
    progress.end()
    connection.send(Ready(first.device, first.executor, found))
    Worker(connection, memory, models, Scheduler(costs, GainModel(gains))).run()
    return 0


def load_plan(connection: Connection, *, in_reserve: bool) -> LoadPlan:
    """Wait for the load plan. A process in reserve imports meanwhile, on a thread of its own: a thread that has lowered
    its priority may not raise it again."""
    if in_reserve:
        threading.Thread(target=import_at_leisure, args=(connection,), daemon=True).start()
    plan: LoadPlan = connection.recv()
    return plan


def import_at_leisure(connection: Connection) -> None:
    """Import what a worker needs, and tell the front end. On Linux the thread runs only while a core is otherwise idle
    (SCHED_IDLE, see sched(7)): the imports take two seconds of CPU, and with a higher niceness instead, stages took
    twice their time meanwhile."""
    thread = threading.get_native_id()
    try:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not on Linux, or a sandbox forbids it
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, LEAST_NICE)
    for name in ("server.worker.loading", "server.worker.process"):
        import_module(name)
    with suppress(OSError):  # the front end is gone
        connection.send(Imported())


def step_back() -> None:
    """Lower the priority of all threads. Not before the worker is ready: until then, requests wait for it."""
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]  # elsewhere: the whole process
    for thread in threads:
        with suppress(ProcessLookupError):  # the thread has ended meanwhile
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            if niceness < NICE:  # only root may raise a priority
                os.setpriority(os.PRIO_PROCESS, thread, NICE)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), in_reserve=IN_RESERVE in sys.argv[2:]))
