"""The lifeline of a worker."""

import socket
import subprocess
import sys
from pathlib import Path

import live

BUSY = """
import sys
from server.worker.lifeline import end_with
end_with(int(sys.argv[1]))
print("begun", flush=True)
while True: pass
"""


def test_a_process_ends_when_the_other_end_is_closed_even_if_it_never_reads() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", BUSY, str(theirs.fileno())]
    with subprocess.Popen(
        command, pass_fds=(theirs.fileno(),), cwd=Path(__file__).parents[1], stdout=subprocess.PIPE
    ) as process:
        theirs.close()
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        ours.send(b"a command that is not read")
        assert process.poll() is None
        ours.close()
        assert process.wait(live.PATIENCE_S) == 0
