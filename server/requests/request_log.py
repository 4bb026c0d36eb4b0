"""The request log: one line for each request that has ended, with --access-log."""

import logging
import math

from server.requests.record import RequestRecord

logger = logging.getLogger("anytime.requests")


def log_request(record: RequestRecord) -> None:
    """Log a request that has ended. JSON has these fields by their names."""
    assert record.elapsed_s is not None
    fields = {
        "request_id": record.id,
        "trace_id": record.trace.trace_id if record.trace else None,
        "client": record.client,
        "protocol": record.protocol,
        "model": record.model,
        "exit": record.exit,
        "stop": str(record.stop),
        "code": record.code,
        "ms": round(1000 * record.elapsed_s, 3),
        "deadline_ms": round(1000 * record.budget_s, 3) if math.isfinite(record.deadline_s) else None,
    }
    logger.info(
        "%s request %s of %s for %s: exit %d, %s after %.1f of %s ms",
        record.protocol,
        record.id,
        record.client,
        record.model,
        record.exit,
        record.code or record.stop,
        fields["ms"],
        fields["deadline_ms"],
        extra=fields,
    )
