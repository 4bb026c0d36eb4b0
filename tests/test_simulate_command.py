"""`python -m server simulate`: traffic, the experiment and its intervals, the report, the command."""

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_simulation import GAINS, MODEL, WORKLOAD, request

from models.checkpoint import save_directory
from models.directory import fingerprint
from server.__main__ import main as serve
from server.simulation import command, experiment, fleet
from server.simulation.device import RequestOutcome
from server.simulation.experiment import OURS, Blocks, DisciplineResult, Estimate, Experiment, LoadResult, resampled
from server.simulation.report import plot, table
from server.simulation.traffic import PROCESSES, Arrival, read_trace
from server.simulation.workload import FrontEnd, Workload, rate_1x

# --- traffic ---


@pytest.mark.parametrize("kind", PROCESSES)
def test_traffic_has_its_rate_and_its_order(kind: str) -> None:
    found = list(PROCESSES[kind].times(40.0, 400.0, np.random.default_rng(0)))
    times_s = [at_s for at_s, _ in found]
    assert len(found) / 400 == pytest.approx(40, rel=0.08)
    assert times_s == sorted(times_s) and times_s[0] >= 0 and times_s[-1] < 400.1


def test_traffic_comes_in_bursts_or_by_the_clock() -> None:
    """The variance of the number in a second, relative to its mean: 1 for Poisson traffic."""
    dispersion, clients = {}, {}
    for kind, process in PROCESSES.items():
        found = list(process.times(40.0, 400.0, np.random.default_rng(0)))
        counts = np.bincount([int(at_s) for at_s, _ in found])
        dispersion[kind], clients[kind] = counts.var() / counts.mean(), {client for _, client in found}
    assert dispersion["poisson"] == pytest.approx(1, abs=0.2)
    assert dispersion["gamma"] == pytest.approx(4, rel=0.3) and dispersion["bursty"] > 8
    assert dispersion["cameras"] < 0.1 and len(clients["cameras"]) == 4 and clients["poisson"] == {""}


def test_a_trace_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"at_s": 2, "client": 7, "give_up_s": 0.1, "hang_up": true, "priority": null}\n\n'
        '{"at_s": 0.5, "deadline_ms": 80, "width": 192, "height": 64, "model": "tiny", "priority": 2}\n'
    )
    first, second = read_trace(path)
    assert first == Arrival(0.5, 80.0, 192, 64, "tiny", priority=2)
    assert second == Arrival(2.0, client="7", give_up_s=0.1, hang_up=True)
    large, plain = WORKLOAD.requests([first, second], np.random.default_rng(0))
    assert (large.deadline_s, large.shape, large.image_parts, large.priority) == (0.58, (64, 192), 2, 2)
    assert large.usual_s == pytest.approx([2 * seconds for seconds in MODEL.usual_s])
    assert 0.05 <= plain.deadline_s - 2 <= 0.3 and plain.give_up_s == 2.1 and plain.image_parts == 1
    with pytest.raises(ValueError, match="no model is called 'other'; there are tiny"):
        WORKLOAD.requests([replace(first, model="other")], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request; give one JSON object a line"),
        ("{", "line 1: Expecting"),
        ('{"at_s": 0}\n[1]', "line 2: .*; its fields are at_s, deadline_ms"),
        ('{"deadline_ms": 5}', "line 1: not a request: at_s is missing"),
        ('{"at_s": 0, "deadline": 5}', "line 1: not a request: deadline is unknown"),
        ('{"at_s": -1}', "line 1: at_s is -1; it must be at least 0"),
        ('{"at_s": 0, "width": 5}', "line 1: width and height belong together; give both or neither"),
        ('{"at_s": 1764320000}', r"line 1: at_s is 1764320000; it may be at most 1e\+06"),
        ('{"at_s": NaN}', "line 1: at_s is nan; give a finite number"),
        ("\udcff\udcd8", "line 1: Expecting value"),  # a photo
    ],
)
def test_a_wrong_trace_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "trace.jsonl")


# --- the experiment ---


def test_an_experiment_compares_all_disciplines_on_the_same_requests() -> None:
    said: list[str] = []
    plan = Experiment(
        WORKLOAD, FrontEnd(), PROCESSES["gamma"], loads=(1.0, 3.0), seeds=2, duration_s=0.7, progress=said.append
    )
    calm, busy = plan.run()
    assert (calm.load, busy.load) == (1.0, 3.0) and busy.rate == pytest.approx(3 * rate_1x(MODEL, FrontEnd()))
    assert busy.requests > 2 * calm.requests and said[:2] == [
        f"load 1: {OURS}, seed {number} of 2" for number in (1, 2)
    ]
    names = [discipline.discipline for discipline in calm.disciplines]
    assert names[0] == OURS and names[-1] == "bound" and any(name.startswith("best fixed exit (") for name in names)
    for result in (calm, busy):
        ours, limit = result.disciplines[0], result.disciplines[-1]
        assert ours.lead == Estimate(0, 0, 0) and sum(ours.exits) == pytest.approx(1)
        for discipline in result.disciplines[:-1]:
            assert discipline.utility.low <= discipline.utility.mean <= discipline.utility.high
            assert discipline.utility.mean <= limit.utility.mean + 1e-9
            assert discipline.lead.mean == pytest.approx(ours.utility.mean - discipline.utility.mean)
        assert limit.lead.mean == pytest.approx(ours.utility.mean - limit.utility.mean)
    assert list(plan.run()) == [calm, busy]


def test_a_trace_is_replayed_as_it_is() -> None:
    arrivals = [Arrival(0.1 * index) for index in range(11)]
    (result,) = Experiment(WORKLOAD, FrontEnd(), arrivals, seeds=2).run()
    assert (result.rate, result.requests) == (pytest.approx(11), 22)
    assert result.load == pytest.approx(11 / rate_1x(MODEL, FrontEnd()))


def test_the_best_fixed_exit_is_chosen_in_hindsight(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in time may be worth nothing, and is an answer nevertheless."""
    profiles = tuple(replace(profile, utility=(0.5, 0.6, 0.55, 0.0)) for profile in GAINS.profiles)
    workload = Workload({"tiny": replace(MODEL, gains=replace(GAINS, profiles=profiles))})

    def simulated(requests: list[object], discipline: object, front_end: FrontEnd) -> list[RequestOutcome]:
        return [RequestOutcome(each, getattr(discipline, "_exit", 1), 0.0) for each in requests]  # type: ignore[arg-type]

    monkeypatch.setattr(experiment, "simulate", simulated)
    (result,) = Experiment(workload, FrontEnd(), PROCESSES["poisson"], loads=(1.0,), seeds=1, duration_s=1.0).run()
    found = {discipline.discipline: discipline for discipline in result.disciplines}
    assert found["best fixed exit (2)"].utility.mean == pytest.approx(0.6)
    assert found["EDF with drop"].utility.mean == 0 and found["EDF with drop"].without.mean == 0


def test_an_answer_that_is_late_or_given_up_is_none_in_time() -> None:
    asked = request(0, 0, 100, utility=(0.5, 0.7))
    due_s = asked.deadline_s
    ends = [RequestOutcome(asked, 2, due_s), RequestOutcome(asked, 2, due_s + 0.006), RequestOutcome(asked, 0, due_s)]
    ends.append(RequestOutcome(asked, 2, due_s, given_up=True))
    assert [(end.in_time, end.utility) for end in ends] == [(True, 0.7), *[(False, 0.0)] * 3]


def test_blocks_are_resampled_as_wholes() -> None:
    """Two runs of 4 s, of two blocks each. Within a block all values are equal, so requests tell no more than blocks:
    the interval is that of four values, 0 0 1 1."""
    requests = [request(key, 100 * key, 1000 * key) for key in range(40)]
    blocks = Blocks(requests + requests, [40, 40])
    values = np.array([float(each.arrived_s >= 2) for each in requests] * 2)
    found = blocks.estimate(values)
    assert found == Estimate(0.5, 0.0, 1.0)
    assert blocks.estimate(np.ones(80)) == Estimate(1, 1, 1)
    alternating = blocks.estimate(np.array([0.0, 1.0] * 40))
    assert alternating.low == alternating.high == 0.5
    assert resampled(np.array([1.0, 9.0]), np.array([10, 10])).mean == 0.5


# --- the report and the command ---

RESULT = LoadResult(
    2.0,
    50.0,
    1000,
    (
        DisciplineResult(
            OURS, Estimate(0.6, 0.58, 0.62), Estimate(0.01, 0.0, 0.02), Estimate(0, 0, 0), (0.01, 0.9, 0.09)
        ),
        DisciplineResult(
            "FIFO", Estimate(0.3, 0.2, 0.4), Estimate(0.5, 0.4, 0.6), Estimate(0.3, 0.2, 0.4), (0.5, 0, 0.5)
        ),
        DisciplineResult("bound", Estimate(0.7, 0.7, 0.7), Estimate(0, 0, 0), Estimate(-0.1, -0.12, -0.08)),
    ),
)


def test_the_table_by_hand() -> None:
    assert list(table(RESULT)) == [
        "load 2x: 50.0 requests a second, 1000 in all; intervals cover 95 %",
        "  discipline                       utility                 behind this server by   no answer   exits 1, 2, .. "
        "in %",
        "  bound                            0.7000 (0.700-0.700)    -0.1000 (-0.120 -0.080)",
        "  this server                      0.6000 (0.580-0.620)                               1.00%   90.0  9.0",
        "  FIFO                             0.3000 (0.200-0.400)    +0.3000 (+0.200 +0.400)   50.00%    0.0 50.0",
    ]


def test_the_plot(tmp_path: Path) -> None:
    plot([RESULT, replace(RESULT, load=4.0)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_directory(folder / "tiny", tiny.network())
    replace(GAINS, fingerprint=fingerprint(folder / "tiny")).save(folder / "tiny")
    return folder


BRIEF = ("--seeds", "1", "--duration-s", "0.5", "--load", "1")


def test_the_command_from_a_model_directory_to_figures(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server", "simulate", "--models", str(models), *BRIEF, "--json"])
    assert serve() == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["precision"], said["machine"]) == ("tiny", "fp32", "a machine")
    assert said["loads"][0]["load"] == 1 and said["loads"][0]["disciplines"][0]["discipline"] == OURS
    (tmp_path / "budget.toml").write_text("[models.tiny]\nmax_exit = 1\n")
    assert command.main(["--models", str(models), *BRIEF, "--budget", str(tmp_path / "budget.toml")]) == 0
    said = capsys.readouterr().out.splitlines()
    rate = rate_1x(MODEL, FrontEnd())
    assert said[0] == f"tiny in fp32, measured on 3 images of val (a machine); load 1x is {rate:.1f} requests a second"
    assert next(line for line in said if OURS in line and "0.00%" in line).endswith("  100.0  0.0  0.0  0.0")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--deadline-ms", "300", "50"],
            2,
            "--deadline-ms is 300 50; give a low one above 0 and a high one, both finite",
        ),
        (["--deadline-ms", "50", "inf"], 2, "--deadline-ms is 50 inf; "),
        (["--seeds", "0"], 2, "--seeds is 0; it must be above 0 and finite"),
        (["--load", "1", "0"], 2, "--load is 0; it must be above 0 and finite"),
        (["--load", "inf"], 2, "--load is inf; it must be above 0 and finite"),
        (["--duration-s", "inf"], 2, "--duration-s is inf; it must be above 0 and finite"),
        (["--duration-s", "nan"], 2, "--duration-s is nan; it must be above 0 and finite"),
        (["--duration-s", "1e-9", "--load", "1"], 1, "no request arrives within 1e-09 s at load 1; give a longer time"),
        (["--duration-s", "1e-9", "--replicas", "2"], 1, "no request arrives within 1e-09 s; give a longer time"),
        (["--front-end-ms", "1", "0", "1"], 2, "--front-end-ms is 0; all three must be above 0 and finite"),
        (["--front-end-ms", "1", "nan", "1"], 2, "--front-end-ms is nan; all three must be above 0 and finite"),
        (["--load", "1e9"], 1, "requests at one load; the most is 2,000,000: lower --load, --duration-s, --seeds"),
        (["--seeds", "1000000000"], 1, "requests at one load; the most is 2,000,000"),
        (["--load", "1e6", "--replicas", "2"], 1, "the most is 2,000,000: lower --load, --duration-s or --replicas"),
        (["--replicas", "20000"], 2, "--replicas is 20000; it must be at least 1 and at most 10,000"),
        (["--duration-s", "1e7", "--load", "1e-5"], 2, "--duration-s is 1e+07; it may be at most 1e+06"),
        (["--replicas", "2", "--budget", "x"], 2, "--budget means nothing with --replicas; leave it out"),
        (["--replicas", "2", "--trace", "x"], 2, "--trace means nothing with --replicas; leave it out"),
        (["--replicas", "2", "--plot", "x"], 2, "--plot means nothing with --replicas; leave it out"),
        (["--replicas", "2", "--traffic", "gamma"], 2, "--traffic means nothing with --replicas; leave it out"),
        (["--replicas", "2", "--seeds", "10"], 2, "--seeds means nothing with --replicas; leave it out"),
        (["--trace", "x", "--load", "1"], 2, "--load means nothing with --trace; leave it out"),
        (["--trace", "x", "--duration-s", "1"], 2, "--duration-s means nothing with --trace; leave it out"),
        (["--plot", "load.exe"], 1, "--plot is load.exe; its name must end with one of "),
        (["--plot", "nowhere/load.png"], 1, "--plot is nowhere/load.png, but there is no folder nowhere"),
        (["--cores", "1"], 2, "--cores is 1; it must be 0, or at least 2"),
        (["--precision", "int8"], 1, "tiny has no gains-int8.json; measure it: python -m models calibrate"),
        (["--model", "other"], 1, "no model is called 'other'"),
        (["--trace", "none.jsonl"], 1, "none.jsonl"),
        (["--traffic", "rain"], 2, "invalid choice: 'rain'"),
        (["--traffic", "poisson", "--trace", "x"], 2, "not allowed with argument"),
    ],
)
def test_wrong_usage_says_so(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    try:
        found = command.main(["--models", str(models), *arguments])
    except SystemExit as error:
        found = int(error.code or 0)
    assert found == status and message in capsys.readouterr().err


class Standard(io.StringIO):
    """A standard error stream. `terminal`: whether it is one."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_a_simulation_without_matplotlib_ends_before_it_begins(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    monkeypatch.setattr(Experiment, "run", lambda _: pytest.fail("it computes"))
    assert command.main(["--models", str(models), *BRIEF, "--plot", str(tmp_path / "load.png")]) == 1
    assert "--plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused_before_the_simulation(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Experiment, "run", lambda _: pytest.fail("it computes"))
    (tmp_path / "folder.png").mkdir()
    assert command.main(["--models", str(models), *BRIEF, "--plot", str(tmp_path / "folder.png")]) == 1
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert command.main(["--models", str(models), *BRIEF, "--plot", str(tmp_path / "load.png")]) == 1
    assert capsys.readouterr().err.count("where no file can be written; name another one") == 2


def test_an_interrupted_simulation_leaves_a_clear_line(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    terminal = Standard(terminal=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(experiment, "simulate", interrupted)
    assert command.main(["--models", str(models), *BRIEF, "--json"]) == 130
    assert terminal.getvalue().endswith(f"\r{'':78}\r{command.PROGRAM}: interrupted\n")


def test_a_simulation_says_how_far_it_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, file = Standard(terminal=True), Standard(terminal=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command.main(["--models", str(models), *BRIEF, "--json"]) == 0
    shown = [text.rstrip() for text in terminal.getvalue().split("\r") if text]
    assert shown[0] == f"load 1: {OURS}, seed 1 of 1" and shown[-2:] == ["load 1: bound, seed 1 of 1", ""]
    monkeypatch.setattr(sys, "stderr", file)
    assert command.main(["--models", str(models), *BRIEF, "--load", "1", "2", "--json"]) == 0
    assert file.getvalue() == "".join(f"{command.PROGRAM}: load {load}\n" for load in (1, 2))


def test_a_fleet_says_how_far_it_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Standard(terminal=True)
    monkeypatch.setattr(fleet, "TOLD_EVERY", 5)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command.main(["--models", str(models), *BRIEF, "--replicas", "2", "--json"]) == 0
    shown = [text.rstrip() for text in terminal.getvalue().split("\r") if text]
    assert re.fullmatch(r"load 1: random, 0 of \d+ requests", shown[0])
    assert shown[1].startswith("load 1: random, 5 of ")
