"""A load generator that reports how a server answers under load, and whether it was the limit itself.

>>> requests = draw_requests(({"at_s": index / 40} for index in range(400)), RequestMix(), seed=0)
>>> plan = LoadTestPlan(list(requests), images=[Path("photo.jpg").read_bytes()])
>>> report = summarise(asyncio.run(measure("http://localhost:8000", plan)), plan.grace_ms)
>>> print(table(report))
"""

from adpc_client.load.arrivals import (
    Arrivals,
    BurstArrivals,
    ConstantArrivals,
    GammaArrivals,
    PoissonArrivals,
    camera_frames,
)
from adpc_client.load.measurement import measure
from adpc_client.load.outcome import LoadMeasurement, Outcome
from adpc_client.load.plan import LoadTestPlan, Mix, PlannedRequest, RequestMix, draw_requests
from adpc_client.load.report import LoadReport, jain_index, summarise
from adpc_client.load.table import table
from adpc_client.load.trace import read_trace, write_trace

__all__ = [
    "Arrivals",
    "BurstArrivals",
    "ConstantArrivals",
    "GammaArrivals",
    "LoadMeasurement",
    "LoadReport",
    "LoadTestPlan",
    "Mix",
    "Outcome",
    "PlannedRequest",
    "PoissonArrivals",
    "RequestMix",
    "camera_frames",
    "draw_requests",
    "jain_index",
    "measure",
    "read_trace",
    "summarise",
    "table",
    "write_trace",
]
