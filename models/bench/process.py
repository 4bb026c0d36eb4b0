"""What the process of a runtime does when the benchmark asks it to, and how such a process is started and ended."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bench import accuracy, profile, workload
from models.bench.accuracy import Accuracy
from models.bench.cases import BenchCase
from models.bench.profile import StepProfile
from models.bench.runtimes import Runtime, export, start

Given = ParamSpec("Given")
Result = TypeVar("Result")

_started: dict[BenchCase, Runtime] = {}
"""What this process has made ready."""


def _failing_by_one_error(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """`function`, which raises RuntimeError with one line if the runtime is missing or fails. Runtimes raise errors of
    any class, some of which pickle badly. Raises FileNotFoundError if the data set lacks a file."""

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise RuntimeError((str(error) or type(error).__name__).splitlines()[0]) from None

    return called


@_failing_by_one_error
def load(case: BenchCase, folder: Path) -> tuple[list[NDArray[np.float32]], str]:
    """Exports a case into `folder` and starts it in this process. Returns its scores at every exit, float32
    (1, C, h, w), and its precision."""
    export(case, folder)
    runtime = _started[case] = start(case, folder)
    scores = [np.asarray(each) for each in runtime.run(workload.inputs(case)).scores]
    return scores, runtime.precision()


@_failing_by_one_error
def timed(case: BenchCase, number: int) -> list[float]:
    """Seconds to every exit of a case that is loaded, on its input of that number."""
    run, inputs = _started[case].run, workload.inputs(case, number)
    run(inputs)  # brings its memory back, and lets the threads of the runtime before fall asleep
    return run(inputs).seconds


@_failing_by_one_error
def scored(case: BenchCase) -> Accuracy:
    """The accuracy of a case that is loaded, and has a trained model."""
    return accuracy.score(case, _started[case].run)


@_failing_by_one_error
def profiled(case: BenchCase, repeats: int) -> list[StepProfile]:
    """Where the time of a case that is loaded goes, if the sparse executor runs it."""
    return profile.profile(case, _started[case].model, repeats)


@_failing_by_one_error
def peak(case: BenchCase, folder: Path) -> int | None:
    """Peak resident memory, in bytes, while a fresh process serves its second image, model included. None where the
    process cannot reset its peak, which Linux allows if /proc/self/clear_refs is writable."""
    run, inputs = start(case, folder).run, workload.inputs(case)
    run(inputs)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far: loading and compiling are not serving
    except OSError:
        return None
    run(inputs)
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """A fresh process, which has loaded nothing yet. Ctrl-C ends it at once."""
    spawn = multiprocessing.get_context("spawn")
    # The terminal interrupts all processes; the parent's one line is enough.
    with ProcessPoolExecutor(1, spawn, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise
