"""python -m server.health: the health check of a container. It asks the server there whether it is ready.

It reads the settings that the server reads: the flags of the container's first process, the environment and the file.
"""

import http.client
import ssl
import sys
from pathlib import Path

from server.settings import Settings, load_settings

FIRST_PROCESS = Path("/proc/1/cmdline")
TIMEOUT_S = 2.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
"""Where a server that listens on all addresses is asked."""


def server_flags(command: bytes) -> list[str]:
    """The flags in the command line of `python -m server`, whose words end in zero bytes. An init may stand before."""
    words = command.decode(errors="replace").split("\0")[:-1]
    for index in range(len(words) - 1):
        if words[index : index + 2] == ["-m", "server"]:
            return words[index + 2 :]
    return []


def ready(settings: Settings) -> bool:
    """Whether the server with these settings answers that it is ready. Its certificate may name any host."""
    host = ANYWHERE.get(settings.host, settings.host)
    if settings.tls_certificate is None:
        connection = http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT_S)
    else:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, settings.port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException) as error:
        print(f"the server at {host}, port {settings.port}, does not answer: {error}", file=sys.stderr)
        return False
    finally:
        connection.close()


def main() -> int:
    flags = server_flags(FIRST_PROCESS.read_bytes()) if FIRST_PROCESS.exists() else []
    return 0 if ready(load_settings(flags)) else 1


if __name__ == "__main__":
    sys.exit(main())
