"""The figures of a load test."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adpc_client.load.outcome import LoadMeasurement, Outcome

LATE_SENDING_MS = 5.0
"""The generator is called late if it sent more than one request in a hundred later than this."""
BUSY_SHARE = 0.8
"""The generator is called busy if it took more than this share of one core."""


@dataclass(frozen=True)
class ClientReport:
    """The figures of one client. `exits` counts requests by the exit returned, `0` for none. `mean_exit` and `utility`
    are means over its requests, of what came in time."""

    requests: int
    in_time: int
    exits: dict[str, int]
    mean_exit: float
    utility: float | None


@dataclass(frozen=True)
class Refusals:
    """Answers with 429 or 503. `retry_after_s`: the mean of those that name one."""

    requests: int
    without_retry_after: int
    retry_after_s: float | None


@dataclass(frozen=True)
class UtilityReport:
    """The utility of an exit is `table[exit - 1]`; of none it is 0. The means are over the requests wanted: of what had
    come by the deadline, and of what came at all."""

    table: tuple[float, ...]
    in_time: float
    returned: float
    in_time_per_s: float


@dataclass(frozen=True)
class Fairness:
    """Jain's index over the clients, from 1 / clients (one has all) to 1 (all have the same)."""

    in_time: float
    mean_exit: float


@dataclass(frozen=True)
class GeneratorReport:
    """What the generator itself cost, and how late it sent. `warning`: why the figures may be its own, or None."""

    cpu_ms_per_request: float
    core_share: float
    lag_ms: dict[str, float]
    not_sent: int
    warning: str | None


@dataclass(frozen=True)
class LoadReport:
    """The figures of a run of `seconds`, from the start to the last answer.

    A request is wanted unless the generator gave it up as planned. An answer is an exit, and in time if it had come by
    the deadline and the grace. `exits` (the exit returned) and `stops` (why each ended) count requests. `late_ms`: from
    the deadline to the last byte of an answer; `late_refusal_ms`: of an error. `server_ms` and `unsure` are what the
    server says of its answers: elapsed milliseconds, and the mean unsure share. `errors`: a sentence for each code.
    """

    requests: int
    seconds: float
    offered_per_s: float
    answered_per_s: float
    in_time_per_s: float
    in_time_share: float
    exits: dict[str, int]
    stops: dict[str, int]
    late_ms: dict[str, float]
    late_refusal_ms: dict[str, float]
    server_ms: dict[str, float]
    unsure: float | None
    utility: UtilityReport | None
    refused: Refusals
    clients: dict[str, ClientReport]
    fairness: Fairness
    generator: GeneratorReport
    errors: dict[str, str]
    faults: int


def summarise(measured: LoadMeasurement, grace_ms: float, utility: Sequence[float] | None = None) -> LoadReport:
    """The figures of what was measured. `utility`: the value of each exit, from exit 1."""
    outcomes, seconds = measured.outcomes, measured.seconds
    wanted = [outcome for outcome in outcomes if not outcome.given_up]
    in_time = sum(outcome.exit_in_time(grace_ms) > 0 for outcome in wanted)
    answers = [outcome for outcome in wanted if outcome.exit > 0]
    replies = [outcome.reply for outcome in answers]
    clients = {
        client: _client(group, grace_ms, utility)
        for client, group in sorted(_by_client(outcomes).items(), key=_natural)
    }
    return LoadReport(
        requests=len(outcomes),
        seconds=round(seconds, 3),
        offered_per_s=round(len(outcomes) / seconds, 2),
        answered_per_s=round(sum(outcome.exit > 0 for outcome in outcomes) / seconds, 2),
        in_time_per_s=round(in_time / seconds, 2),
        in_time_share=round(in_time / len(wanted), 4) if wanted else 0.0,
        exits=_exits(outcomes),
        stops=dict(Counter(outcome.reply.stop for outcome in outcomes).most_common()),
        late_ms=_percentiles(outcome.late_ms for outcome in answers),
        late_refusal_ms=_percentiles(outcome.late_ms for outcome in wanted if outcome.reply.error is not None),
        server_ms=_percentiles(reply.elapsed_ms for reply in replies if reply.elapsed_ms is not None),
        unsure=_mean([reply.unsure for reply in replies if reply.unsure is not None]),
        utility=None if utility is None else _utility(wanted, seconds, grace_ms, tuple(utility)),
        refused=_refusals(outcomes),
        clients=clients,
        fairness=Fairness(
            jain_index([client.in_time for client in clients.values()]),
            jain_index([client.mean_exit for client in clients.values()]),
        ),
        generator=_generator(outcomes, seconds, measured.cpu_s),
        errors={outcome.reply.stop: outcome.reply.error for outcome in reversed(outcomes) if outcome.reply.error},
        faults=sum(outcome.reply.fault for outcome in outcomes),
    )


def jain_index(values: Sequence[float]) -> float:
    """Jain's index of fairness: (sum x)^2 / (n sum x^2). It is 1 if all have the same, also if all have nothing."""
    squares = sum(value * value for value in values)
    return round(sum(values) ** 2 / (len(values) * squares), 4) if squares else 1.0


def _by_client(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.request.client, []).append(outcome)
    return groups


def _natural(group: tuple[str, list[Outcome]]) -> tuple[int, str]:
    """Sorts 2 before 10."""
    return len(group[0]), group[0]


def _client(outcomes: Sequence[Outcome], grace_ms: float, utility: Sequence[float] | None) -> ClientReport:
    wanted = [outcome.exit_in_time(grace_ms) for outcome in outcomes if not outcome.given_up]
    return ClientReport(
        requests=len(outcomes),
        in_time=sum(exit > 0 for exit in wanted),
        exits=_exits(outcomes),
        mean_exit=_mean(wanted) or 0.0,
        utility=None if utility is None else _mean([_value(exit, utility) for exit in wanted]),
    )


def _exits(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {str(exit): count for exit, count in sorted(Counter(outcome.exit for outcome in outcomes).items())}


def _utility(wanted: Sequence[Outcome], seconds: float, grace_ms: float, table: tuple[float, ...]) -> UtilityReport:
    in_time = [_value(outcome.exit_in_time(grace_ms), table) for outcome in wanted]
    returned = [_value(outcome.exit, table) for outcome in wanted]
    return UtilityReport(table, _mean(in_time) or 0.0, _mean(returned) or 0.0, round(sum(in_time) / seconds, 3))


def _value(exit: int, table: Sequence[float]) -> float:
    if exit > len(table):
        raise ValueError(f"the utility of exit {exit} is not known; give a value for each exit, not {len(table)}")
    return table[exit - 1] if exit else 0.0


def _refusals(outcomes: Sequence[Outcome]) -> Refusals:
    refused = [outcome.reply for outcome in outcomes if outcome.reply.status in (429, 503)]
    waits_s = [reply.retry_after_s for reply in refused if reply.retry_after_s is not None]
    return Refusals(len(refused), len(refused) - len(waits_s), _mean(waits_s))


def _generator(outcomes: Sequence[Outcome], seconds: float, cpu_s: float) -> GeneratorReport:
    sent = [outcome for outcome in outcomes if outcome.sent]
    lag_ms = _percentiles(1000 * outcome.lag_s for outcome in sent)
    not_sent = sum(outcome.reply.stop == "not_sent" for outcome in outcomes)
    core_share = cpu_s / seconds
    warning = None
    if not_sent:
        warning = f"{not_sent} requests were not sent, because too many were open; raise --max-open or lower the rate"
    elif lag_ms.get("p99", 0.0) > LATE_SENDING_MS:
        warning = (
            f"one request in a hundred was sent more than {lag_ms['p99']:.0f} ms late; lower the rate, or run the "
        )
        warning += "generator on cores that the server does not use"
    elif core_share > BUSY_SHARE:
        warning = f"the generator took {core_share:.0%} of a core; lower the rate, or run several generators"
    return GeneratorReport(
        round(1000 * cpu_s / len(sent), 3) if sent else 0.0, round(core_share, 4), lag_ms, not_sent, warning
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    if not found:
        return {}
    shares = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    return {name: round(float(np.percentile(found, share)), 3) for name, share in shares.items()}
