"""Deployment files name settings, paths, ports and files that exist, and drop privileges."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import live
import pytest
import yaml

from server.access.guard import OPEN_PATHS
from server.access.origins import Origins
from server.app import create_app
from server.settings import CONFIG, PREFIX, ROOT, Settings, flag

DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "systemd" / "anytime.service"
SITE = DEPLOY / "nginx" / "anytime.conf"
DOCKERFILE = ROOT / "Dockerfile"
PLAIN = [
    path
    for path in (*DEPLOY.rglob("*"), COMPOSE, DOCKERFILE)
    if path.suffix in (".yml", ".yaml", ".conf", ".service", ".py", "")
]
FILES = [path for path in PLAIN if path.is_file()]
YAML = [path for path in FILES if path.suffix in (".yml", ".yaml")]
LONGEST_STOP_S = 5 + Settings().drain_ms / 1000
"""For preStop and the drain."""


def read(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def resources() -> Iterator[dict[str, Any]]:
    for path in KUBERNETES.rglob("*.yaml"):
        yield from read(path)


def containers() -> Iterator[dict[str, Any]]:
    for found in resources():
        if found["kind"] == "Deployment":
            yield from found["spec"]["template"]["spec"]["containers"]
        elif found["kind"] == "ServingRuntime":
            yield from found["spec"]["containers"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    names = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", text)) <= names
    flags = {flag(name) for name in Settings.model_fields}
    others = {"--kustomize", "--target", "--gpus", "--read-only", "--tmpfs", "--now", "--from"}
    docker = {"--no-install-recommends", "--no-cache-dir", "--extra-index-url", "--constraint", "--editable"}
    health = {"--interval", "--timeout", "--start-period"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= flags | others | docker | health


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_yaml(path: Path) -> None:
    assert all(isinstance(found, dict) for found in read(path))


def test_every_resource_of_a_kustomization_is_there() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        (found,) = read(path)
        assert all((path.parent / name).exists() for name in found["resources"])
        if path.parent.name == "base":
            there = {other.name for other in path.parent.iterdir()} - {path.name}
            assert there == set(found["resources"])


def test_probes_and_scrapes_ask_for_what_the_server_answers(tmp_path: Path) -> None:
    app = create_app(live.settings(live.write_configs(tmp_path)), print)
    paths = set(app.openapi()["paths"])
    found = list(containers())
    assert found
    for container in found:
        probes = [container[name] for name in container if name.endswith("Probe")]
        assert {probe["httpGet"]["path"] for probe in probes} <= paths & {*OPEN_PATHS}  # a probe has no key
        ports = {port["name"] for port in container["ports"]} | {port["containerPort"] for port in container["ports"]}
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        assert {port["containerPort"] for port in container["ports"]} == {Settings().port}
    monitors = [each for each in resources() if each["kind"] == "ServiceMonitor"]
    assert {endpoint["path"] for each in monitors for endpoint in each["spec"]["endpoints"]} <= paths


@pytest.mark.parametrize("domain", ["", ".svc", ".svc.cluster.local"])
def test_pods_of_other_namespaces_may_call_a_server_by_every_name_of_its_service(domain: str) -> None:
    (namespace,) = (found["metadata"]["name"] for found in resources() if found["kind"] == "Namespace")
    for container in containers():
        allowed = {variable["name"]: variable["value"] for variable in container["env"]}[f"{PREFIX}ALLOWED_HOSTS"]
        origins = Origins(allowed, "", ["0.0.0.0"], own_name="anytime-7d9c")
        assert origins.check_host([f"anytime.{namespace}{domain}"], "1.1") is not None


def test_platforms_wait_longer_than_the_server_drains() -> None:
    (compose,) = read(COMPOSE)
    waits = [int(compose["services"]["server"]["stop_grace_period"].removesuffix("s"))]
    waits += [int(re.findall(r"TimeoutStopSec=(\d+)", UNIT.read_text())[0])]
    waits += [int(found) for path in YAML for found in re.findall(r"GracePeriodSeconds: (\d+)", path.read_text())]
    assert len(waits) == 4 and min(waits) > LONGEST_STOP_S


def test_containers_run_without_rights() -> None:
    for container in containers():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]["cpu"] == container["resources"]["limits"]["cpu"]
    (compose,) = read(COMPOSE)
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"] and service["restart"] == "unless-stopped"
        assert service["mem_limit"] and service["cpus"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert re.fullmatch(r"\S+:(v?\d+\.\d+\.\d+|cpu|cuda)", service["image"])
    users = re.findall(r"^USER (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(users) == 2 and all(re.fullmatch(r"\d+:\d+", user) for user in users)


def test_a_server_may_take_the_memory_that_its_limits_add_up_to() -> None:
    """The front end may take the sum of its limits. A worker in fp32 takes 3.3 GB for the largest image
    (docs/operations.md)."""
    held = Settings()
    needed = held.max_unfinished_bytes + held.max_open * held.max_body_bytes + held.shared_memory_bytes + 3.3e9
    (compose,) = read(COMPOSE)
    given = [
        compose["services"]["server"]["mem_limit"],
        *re.findall(r"^MemoryMax=(\S+)", UNIT.read_text(), re.MULTILINE),
    ]
    given += [container["resources"]["limits"]["memory"] for container in containers()]
    assert len(given) == 4 and min(int(re.findall(r"^\d+", text)[0]) for text in given) * 2**30 > needed


def test_the_file_of_compose_mounts_what_there_is() -> None:
    (compose,) = read(COMPOSE)
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", ())]
    assert all((ROOT / volume.split(":")[0]).is_dir() for volume in mounted if volume.startswith("./"))
    (scrape,) = read(DEPLOY / "prometheus" / "prometheus.yml")
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert compose["services"]["server"]["networks"]["default"]["aliases"] == [target.partition(":")[0]]


def test_no_two_services_of_compose_take_the_same_port() -> None:
    """The file for a GPU changes the server and adds none."""
    (compose,), (gpu,) = read(COMPOSE), read(DEPLOY / "compose" / "gpu.yml")
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert len(set(ports)) == len(ports) and list(gpu["services"]) == ["server"]


def test_a_gpu_gets_as_much_memory_from_systemd_as_from_kubernetes() -> None:
    unit, (gpu,) = UNIT.read_text(), read(DEPLOY / "compose" / "gpu.yml")
    assert gpu["services"]["server"]["mem_limit"] == "12g" and "MemoryMax to 12G" in unit
    folder = re.findall(r"^CacheDirectory=(.+)$", unit, re.MULTILINE)[0]
    assert f"TRITON_CACHE_DIR=%C/{folder}/" in unit  # nothing else may be written


def test_only_the_image_for_gpus_has_a_compiler() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE.read_text(), re.MULTILINE))
    assert "gcc" in stages["cuda"] and "gcc" not in stages["cpu"] and list(stages)[-1] == "cpu"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_the_health_check_of_the_images_knows_the_settings_of_the_server() -> None:
    checks = re.findall(r"^HEALTHCHECK .*$", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(checks) == 1 and checks[0].endswith('"-m", "server.health"]')


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/anytime/.venv/bin/python", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_understands_the_site(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {SITE}; }}")
    found = subprocess.run(
        ["nginx", "-t", "-q", "-p", str(tmp_path), "-c", str(main)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_no_complaint() -> None:
    found = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
