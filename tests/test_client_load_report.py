"""The figures of a load test as a report, a table and a picture."""

import sys
from pathlib import Path

import pytest
from adpc_client.load import (
    LoadMeasurement,
    Outcome,
    PlannedRequest,
    jain_index,
    summarise,
    table,
)
from adpc_client.load.plot import check_plotting, draw, plot
from adpc_client.load.report import LATE_SENDING_MS
from adpc_client.load.transport import LoadReply, ReceivedExit
from matplotlib.figure import Figure

TABLE = (0.4, 0.5, 0.6, 0.7)


def outcome(at_s, *exits, ended_s=0.1, stop="deadline", client="0", give_up_s=None, sent=True, lag_s=0.001, **reply):
    """An outcome whose exits and end are given in seconds after it was due, with a deadline of 100 ms."""
    received = tuple(ReceivedExit(number, at_s + after_s) for number, after_s in exits)
    request = PlannedRequest(at_s, 100.0, client=client, give_up_s=give_up_s)
    return Outcome(request, LoadReply(at_s + ended_s, stop, received, **reply), lag_s=lag_s, sent=sent)


OUTCOMES = [
    outcome(0.0, (1, 0.05), (4, 0.08), ended_s=0.08, stop="complete", unsure=0.1, elapsed_ms=79.0),
    outcome(0.1, (2, 0.104), ended_s=0.104, unsure=0.3, elapsed_ms=99.0),  # within the grace
    outcome(0.2, (1, 0.09), (3, 0.13), ended_s=0.13, client="1"),  # exit 3 is late, exit 1 is not
    outcome(0.3, (1, 0.13), ended_s=0.13, client="1"),  # late
    outcome(0.4, ended_s=0.11, stop="no_exit", error="too late", status=504, client="1"),
    outcome(0.5, ended_s=0.01, stop="overloaded", error="busy", status=503, retry_after_s=0.5),
    outcome(0.6, ended_s=0.01, stop="limited", error="slow down", status=429),
    outcome(0.7, ended_s=0.01, stop="internal", error="broken", status=500, fault=True),
    outcome(0.8, (1, 0.03), ended_s=0.04, stop="cancelled", give_up_s=0.03),
    outcome(0.9, ended_s=0.05, stop="hung_up", give_up_s=0.05),
    outcome(1.0, (2, 0.03), ended_s=0.04, stop="cancelled"),  # by a newer frame
    outcome(1.1, stop="not_sent", sent=False, lag_s=0.0),
]


def report_of(*outcomes, utility=None, cpu_s=0.1):
    return summarise(LoadMeasurement(list(outcomes), 2.0, cpu_s), 5.0, utility)


def test_the_figures():
    report = report_of(*OUTCOMES, utility=TABLE)
    assert (report.requests, report.seconds, report.faults) == (12, 2.0, 1)
    assert (report.offered_per_s, report.answered_per_s, report.in_time_per_s) == (6.0, 3.0, 2.0)
    assert report.in_time_share == 0.4  # 4 of the 10 that were not given up
    assert report.exits == {"0": 6, "1": 2, "2": 2, "3": 1, "4": 1}
    assert report.stops["deadline"] == 3 and sum(report.stops.values()) == 12
    assert report.late_ms["p50"] == 4.0 and report.late_ms["max"] == 30.0
    assert report.late_refusal_ms["max"] == 10.0 and report.late_refusal_ms["p50"] == -90.0
    assert report.server_ms["p50"] == 89.0 and report.unsure == 0.2
    assert (report.refused.requests, report.refused.without_retry_after, report.refused.retry_after_s) == (2, 1, 0.5)
    assert report.errors == {"no_exit": "too late", "overloaded": "busy", "limited": "slow down", "internal": "broken"}
    assert report.utility.in_time == pytest.approx((0.7 + 0.5 + 0.4 + 0.5) / 10)
    assert report.utility.returned == pytest.approx((0.7 + 0.5 + 0.6 + 0.4 + 0.5) / 10)
    assert report.utility.in_time_per_s == pytest.approx(2.1 / 2)
    first, second = report.clients["0"], report.clients["1"]
    assert (first.requests, first.in_time, first.mean_exit) == (9, 3, round(8 / 7, 4))
    assert (second.requests, second.in_time, second.exits) == (3, 1, {"0": 1, "1": 1, "3": 1})
    assert second.utility == pytest.approx(0.4 / 3, abs=1e-4)
    assert report.fairness.in_time == jain_index([3, 1]) == 0.8
    assert report.fairness.mean_exit == jain_index([first.mean_exit, second.mean_exit])
    assert (report.generator.not_sent, report.generator.core_share) == (1, 0.05)
    assert report.generator.cpu_ms_per_request == pytest.approx(100 / 11, abs=1e-3)  # of those sent
    assert report.generator.lag_ms["p50"] == 1.0


def test_of_each_code_the_first_sentence_is_shown():
    report = report_of(*(outcome(0.0, stop="no_exit", error=sentence) for sentence in ("60 ms", "70 ms")))
    assert report.errors == {"no_exit": "60 ms"}


def test_figures_of_nothing():
    report = report_of(outcome(0.0, stop="overloaded", status=503))
    assert report.late_ms == report.server_ms == {} and report.in_time_share == 0.0
    assert report.utility is None and report.unsure is None and report.refused.retry_after_s is None
    assert table(report)


@pytest.mark.parametrize(
    ("values", "index"), [([1, 1, 1], 1.0), ([4, 0, 0, 0], 0.25), ([1, 3], 0.8), ([0, 0], 1.0), ([5], 1.0)]
)
def test_jains_index(values, index):
    assert jain_index(values) == index


@pytest.mark.parametrize(
    ("outcomes", "cpu_s", "warning"),
    [
        ([outcome(0.0)], 0.1, None),
        ([outcome(0.0, stop="not_sent", sent=False)], 0.1, "1 requests were not sent"),
        ([outcome(0.0, lag_s=(LATE_SENDING_MS + 1) / 1000)], 0.1, "more than 6 ms late"),
        ([outcome(0.0)], 1.7, "took 85% of a core"),
    ],
)
def test_the_generator_says_when_it_was_the_limit(outcomes, cpu_s, warning):
    found = report_of(*outcomes, cpu_s=cpu_s)
    if warning is None:
        assert found.generator.warning is None and "WARNING" not in table(found)
    else:
        assert warning in found.generator.warning and f"limit: {found.generator.warning}" in table(found)


def test_the_table_shows_the_report():
    text = table(report_of(*OUTCOMES, utility=TABLE))
    assert "12 requests in 2.0 s: 6.0/s offered, 3.0/s answered, 2.0/s in time, 40.0% of those wanted" in text
    assert "no exit       6  " + "█" * 40 in text and "exit 1        2  " + "█" * 13 + "\n" in text
    assert "3 deadline, " in text and "no_exit: too late" in text
    assert "refused:  2, to come back after 0.50 s on average; 1 without Retry-After" in text
    assert "0.2100 a request in time, 0.2700 returned, 1.05/s in time" in text
    assert "Jain's index 0.800 of answers in time" in text
    assert "0                 9        3       1.14  5/1/2/0/1" in text
    assert "client" not in table(report_of(OUTCOMES[0]))
    many = [outcome(0.0, (1, 0.01), client=str(client)) for client in range(20)]
    assert list(report_of(*reversed(many)).clients) == [str(client) for client in range(20)]
    worst = table(report_of(*many, outcome(0.0, client="13")))
    assert worst.index("\n  13 ") < worst.index("\n  0  ") and "\n  19 " not in worst
    assert "and 4 clients with a larger share" in table(report_of(*many))


def test_an_exit_without_a_utility_is_refused():
    with pytest.raises(ValueError, match="utility of exit 4 is not known; give a value for each exit, not 2"):
        report_of(OUTCOMES[0], utility=(0.1, 0.2))


def test_the_plot_shows_every_request():
    rates, lateness, exits, clients = draw(OUTCOMES, 5.0).axes
    offered, in_time = rates.patches
    assert offered.get_data().values.tolist() == [10, 2] and in_time.get_data().values.tolist() == [3, 1]
    assert exits.patches[-1].get_data().values.tolist() == [10, 2]  # the top of the stack
    assert [text.get_text() for text in exits.get_legend().get_texts()][:2] == ["no exit", "exit 1"]
    late_ms, shares = lateness.lines[0].get_data()
    assert late_ms.tolist() == pytest.approx([-60, -20, 4, 30, 30]) and shares[-1] == 1
    assert sum(bar.get_height() for bar in clients.patches) == 12
    assert max(bar.get_y() + bar.get_height() for bar in clients.patches) == 9


def test_the_plot_becomes_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr("adpc_client.load.plot.draw", lambda *_: Figure(figsize=(2, 1)))
    plot(OUTCOMES, 5.0, tmp_path / "load.svg")
    assert "</svg>" in (tmp_path / "load.svg").read_text()


def test_without_matplotlib_a_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'adpc-client\[plot\]'"):
        check_plotting(Path("load.png"))


def test_a_plot_of_an_unknown_format_is_refused():
    check_plotting(Path("load.PNG"))
    with pytest.raises(ValueError, match=r"the plot load\.xyz must end in one of \..*, \.png"):
        check_plotting(Path("load.xyz"))
