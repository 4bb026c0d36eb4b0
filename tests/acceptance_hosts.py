"""The tests of HTTP and WebSocket on every ASGI host: our own command, uvicorn, hypercorn and Ray Serve.

pytest does not collect it. `pip install '.[ray]'`, then `python tests/acceptance_hosts.py` prints a table of what
passed, what failed, and what a host cannot have, with the reason, and fails if a test did. `--hosts uvicorn ray` and
files as arguments choose less.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from acceptance import ROOT

HOSTS = ("own", "uvicorn", "hypercorn", "ray")
FILES = ("http", "stream", "events", "open_inference", "refusals", "budget_route")
LONGEST_S = 1800


def outcomes(host: str, file: Path, report: Path) -> Counter[str]:
    """How the tests of a file ended on a host: passed, `FAILED` with a name, or `not applicable` with the reason."""
    plugin = ["-p", "ray_host", "-W", "ignore"] if host == "ray" else []
    command = [sys.executable, "-m", "pytest", "-q", *plugin, f"--junit-xml={report}", str(file)]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "clients", "tests"))
    environment = {**os.environ, "ASGI_HOST": host, "PYTHONPATH": paths}
    report.unlink(missing_ok=True)
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=LONGEST_S, check=False)
    if not report.exists():
        return Counter([f"FAILED {file.name}: pytest ended with status {ran.returncode}"])
    return Counter(outcome(case) for case in ElementTree.parse(report).iter("testcase"))


def outcome(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    if skipped is not None:
        return f"not applicable: it {skipped.get('message')}"
    if case.find("failure") is not None or case.find("error") is not None:
        return f"FAILED {case.get('name')}"
    return "passed"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="The tests of HTTP and WebSocket on every ASGI host.", allow_abbrev=False
    )
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=HOSTS)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "tests" / f"test_{name}.py" for name in FILES])
    args = parser.parse_args(argv)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for host in args.hosts:
            found: Counter[str] = Counter()
            for file in args.files:
                found += outcomes(host, file, Path(folder) / "report.xml")
            print(host, *(f"{count:6d} {how}" for how, count in found.most_common()), sep="\n", flush=True)
            failed = failed or any(how.startswith("FAILED") for how in found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
