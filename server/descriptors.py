"""Descriptors: how many connections a process may have, so that it can still open what else it needs."""

import resource

from server.settings import Settings


def connection_room(settings: Settings) -> int:
    """How many connections may be open at once: the setting, or what the process's limit of descriptors leaves beside
    the reserve. Raises the soft limit as far as that is needed. Raises ValueError if there is room for none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + settings.reserve_descriptors
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = settings.max_connections if soft == unlimited else soft - settings.reserve_descriptors
    if room < 1:
        raise ValueError(
            f"the process may have {soft} descriptors (ulimit -n), and --reserve-descriptors keeps "
            f"{settings.reserve_descriptors} of them; raise the limit, or keep fewer"
        )
    return min(room, settings.max_connections)
