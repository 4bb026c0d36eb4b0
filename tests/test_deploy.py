"""Dashboards, rules and autoscalers use only metrics that the server exports."""

import json
import re
import shutil
import subprocess

import live
import pytest

from server.app import create_app
from server.metrics import OVERRUN
from server.requests.budget import GRACE_S, LONE_GRACE_S
from server.settings import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "anytime.json"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples that a server shows."""
    app = create_app(live.settings(live.write_configs(tmp_path_factory.mktemp("models"))), print)
    text = app.state.service.metrics.text().decode()
    families = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)  # a gauge whose labels are not known yet has no sample
    return {*families, *re.findall(r"^(\w+)", text, re.MULTILINE)}


def asked(text: str) -> set[str]:
    """The names of samples in a query; those of recorded series have colons."""
    return set(re.findall(r"(?<![\w:])(?:anytime|process)_\w+", text))


def test_every_rule_asks_for_metrics_that_exist(samples: set[str]) -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    assert asked(text) and asked(text) <= samples
    recorded = set(re.findall(r"record: (\S+)", text))
    assert set(re.findall(r"model\w*:anytime_\w+:\w+", text)) == recorded


def test_the_alert_of_late_answers_counts_a_bucket_beyond_the_grace() -> None:
    """The server sends a required exit though it is as late as that."""
    bounds = {float(bound) for bound in re.findall(r'le="([\d.]+)"', (PROMETHEUS / "rules.yml").read_text())}
    assert bounds <= {*OVERRUN} and max(bounds) == min(bound for bound in OVERRUN if bound > max(GRACE_S, LONE_GRACE_S))


def test_every_query_of_the_dashboard_asks_for_metrics_that_exist(samples: set[str]) -> None:
    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    assert all(asked(query) for query in queries)
    assert {name for query in queries for name in asked(query)} <= samples


def test_kubernetes_scales_by_metrics_that_exist(samples: set[str]) -> None:
    text = (ROOT / "deploy" / "kubernetes" / "overlays" / "keda" / "scaledobject.yaml").read_text()
    assert asked(text) and asked(text) <= samples


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
@pytest.mark.parametrize(("command", "file"), [("test", "rules_test.yml"), ("check", "rules.yml")])
def test_alerts_fire_when_they_should(command: str, file: str) -> None:
    found = subprocess.run(
        ["promtool", command, "rules", str(PROMETHEUS / file)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_is_tested_both_ways_and_has_its_entry_in_the_run_book() -> None:
    alerts = re.findall(r"alert: (\w+)", (PROMETHEUS / "rules.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "rules_test.yml").read_text())
    assert set(tested) == set(alerts) and all(tested.count(alert) >= 2 for alert in alerts)
    assert re.findall(r"^\| `(Anytime\w+)`", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE) == alerts
