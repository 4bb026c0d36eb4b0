"""A load report as lines of text."""

from collections.abc import Iterator

from adpc_client.load.report import LoadReport

_MOST_CLIENTS = 16
_BAR = 40


def table(report: LoadReport) -> str:
    """`report` as lines of text."""
    return "\n".join(_lines(report))


def _lines(report: LoadReport) -> Iterator[str]:
    yield (
        f"{report.requests} requests in {report.seconds:.1f} s: {report.offered_per_s:.1f}/s offered, "
        f"{report.answered_per_s:.1f}/s answered, {report.in_time_per_s:.1f}/s in time, "
        f"{report.in_time_share:.1%} of those wanted"
    )
    most = max(report.exits.values(), default=1)
    for exit, count in report.exits.items():
        yield f"  {f'exit {exit}' if exit != '0' else 'no exit':8} {count:6}  {'█' * round(_BAR * count / most)}"
    yield "  ended:    " + ", ".join(f"{count} {stop}" for stop, count in report.stops.items())
    for code, sentence in report.errors.items():
        yield f"  {code}: {sentence}"
    refused = report.refused
    if refused.requests:
        wait = "" if refused.retry_after_s is None else f", to come back after {refused.retry_after_s:.2f} s on average"
        yield f"  refused:  {refused.requests}{wait}; {refused.without_retry_after} without Retry-After"
    if report.utility is not None:
        found = report.utility
        yield (
            f"  utility:  {found.in_time:.4f} a request in time, {found.returned:.4f} returned, "
            f"{found.in_time_per_s:.2f}/s in time"
        )
    if report.unsure is not None:
        yield f"  unsure:   {report.unsure:.1%} of the positions on average"
    figures = {
        "late_ms": report.late_ms,
        "refusal": report.late_refusal_ms,
        "server_ms": report.server_ms,
        "lag_ms": report.generator.lag_ms,
    }
    for name, values in figures.items():
        if values:
            yield f"  {name:9} " + "  ".join(f"{key} {value:.1f}" for key, value in values.items())
    if len(report.clients) > 1:
        yield from _clients(report)
    generator = report.generator
    yield f"  generator: {generator.cpu_ms_per_request:.2f} ms of CPU a request, {generator.core_share:.0%} of a core"
    if generator.warning is not None:
        yield f"  WARNING: the generator may have been the limit: {generator.warning}"


def _clients(report: LoadReport) -> Iterator[str]:
    fairness = report.fairness
    yield f"  fairness: Jain's index {fairness.in_time:.3f} of answers in time, {fairness.mean_exit:.3f} of mean exits"
    exits = sorted({exit for client in report.clients.values() for exit in client.exits})
    yield f"  {'client':10} requests  in time  mean exit  {'/'.join(exits)}"
    worst = sorted(report.clients.items(), key=lambda item: item[1].in_time / item[1].requests)
    for name, client in worst[:_MOST_CLIENTS]:
        counts = "/".join(str(client.exits.get(exit, 0)) for exit in exits)
        yield f"  {name[:10]:10} {client.requests:8} {client.in_time:8}  {client.mean_exit:9.2f}  {counts}"
    if len(worst) > _MOST_CLIENTS:
        yield f"  and {len(worst) - _MOST_CLIENTS} clients with a larger share in time"
