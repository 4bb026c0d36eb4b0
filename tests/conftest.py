"""One compute thread for tests: the networks are tiny, and results must not depend on how busy the machine is."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the worker processes that tests start

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the real server with tiny models; see `live_server`."""
    from live_server import live_server  # noqa: PLC0415 - loads torch, which many tests do without

    with live_server(tmp_path_factory.mktemp("models")) as url:
        yield url
