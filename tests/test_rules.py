"""Settings that contradict each other, the models or the machine: a case for each rule."""

import errno
import socket
import sys
from dataclasses import replace
from pathlib import Path

import live
import pytest
import tiny

from models.network.mdeq_configs import MdeqConfig
from server import __main__ as program
from server.catalog import Catalog, read_catalog
from server.rules import Machine, contradictions, try_to_listen
from server.settings import Settings, load_settings

MACHINE = Machine(cores=2, memory_bytes=8 * 2**30, listen=lambda host, port: None)
SMALL = {"shared_memory_bytes": 2**24, "max_pixels": 2**20}

BROKEN = {
    "--default-deadline-ms 600 and --max-deadline-ms 500: ": {"default_deadline_ms": 600, "max_deadline_ms": 500},
    "--client-burst 5 and --client-rate 0: without a rate there is no burst; ": {"client_burst": 5},
    "--traffic-cap 8:3,129:2 and --max-open 128: 129 requests are never open; name at most 128": {
        "traffic_cap": "8:3,129:2"
    },
    "--shared-memory-bytes 11534335 and --max-pixels 1048576: the largest image and its maps by tiny-segmentation need "
    "11,534,336 bytes; ": {"shared_memory_bytes": 11 * 2**20 - 1},
    "--shared-memory-bytes 16777216 and --max-open 1490: so many images of 32x32 and their maps by tiny-segmentation "
    "need 16,783,360 bytes; ": {"max_open": 1490},
    "--shared-memory-bytes 1000000000000000: it takes 1,000,000,000,000,000 bytes, and there are 8,589,934,592 of "
    "memory; lower it": {"shared_memory_bytes": 10**15},
    "--traffic-cap 8:3,16:5 and --models {models}: no model has an exit 5; the deepest one has exits 1 to 4: name at "
    "most 4": {"traffic_cap": "8:3,16:5"},
    "--admin 127.0.0.1:8000 and --port 8000: the operators' address needs a port of its own, ": {
        "admin": "127.0.0.1:8000"
    },
    "--peers anytime-peers:8000 and --tls-certificate cert.pem: replicas ask each other over plain HTTP, ": {
        "peers": "anytime-peers:8000",
        "tls_certificate": "cert.pem",
    },
    "--max-body-bytes 1000000000000: an image may take 1,000,000,000,000 bytes, ": {
        "max_body_bytes": 10**12,
        "max_unfinished_bytes": 10**12,
        "max_unfinished_bytes_per_address": 10**12,
    },
    "--max-body-bytes 134217729 and --max-unfinished-bytes-per-address 134217728: a file as large as the first is ": {
        "max_body_bytes": 2**27 + 1
    },
    "--max-body-bytes 2097152 and --max-unfinished-bytes 1048576: a file as large as the first is dropped before ": {
        "max_body_bytes": 2**21,
        "max_unfinished_bytes": 2**20,
    },
    "--spare-workers 64: they take 9,600,000,000 bytes, ": {"spare_workers": 64},
    "--history 1000000000: they take 2,048,000,000,000 bytes, ": {"history": 10**9},
    "--max-message-bytes 65536 and --max-body-bytes 32767: a WebSocket reads 65,534 bytes at most": {
        "max_body_bytes": 32767,
        "max_message_bytes": 65536,
    },
    "--threads 17: there are 2 cores, for which 16 threads are the most; lower it": {"threads": 17},
    "--codec-threads 17: there are 2 cores, ": {"codec_threads": 17},
    "--threads 1 and --device cpu,cpu: each of the 2 workers computes with a thread of its own; ": {
        "threads": 1,
        "device": "cpu,cpu",
    },
    "--executor sparse and --device cpu,cuda:1: the executor does not run on cuda:1, but on cpu; ": {
        "executor": "sparse",
        "device": "cpu,cuda:1",
    },
    "--executor triton and --precision int8: the executor computes in fp16; change one": {
        "executor": "triton",
        "precision": "int8",
        "device": "cuda",
    },
    "--access-log and --log-level warning: requests are logged with the level info, which is not shown; ": {
        "access_log": True,
        "log_level": "warning",
    },
    "--precision int8 and --models {models}: tiny-pose has no int8.json; make it with python -m models quantise, or ": {
        "precision": "int8"
    },
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return read_catalog(live.write_configs(tmp_path_factory.mktemp("models")))


def folder(catalog: Catalog) -> Path:
    return next(iter(catalog)).directory.parent


@pytest.mark.parametrize(("sentence", "fields"), BROKEN.items(), ids=[" ".join(fields) for fields in BROKEN.values()])
def test_a_rule_that_is_broken_names_both_settings_their_values_and_a_remedy(
    catalog: Catalog, sentence: str, fields: dict[str, object]
) -> None:
    settings = Settings.model_validate({"models": folder(catalog), **SMALL, **fields})
    found = contradictions(settings, catalog, MACHINE)
    assert any(problem.startswith(sentence.format(models=folder(catalog))) for problem in found), found
    assert len(found) == 1 or "precision" in fields


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"default_deadline_ms": 500, "max_deadline_ms": 500},
        {"client_burst": 5, "client_rate": 1},
        {"traffic_cap": "128:2"},
        {"traffic_cap": "0:4"},
        {"admin": "127.0.0.1:0", "port": 0},
        {"peers": "anytime-peers:8001", "tls_certificate": "cert.pem"},  # a proxy beside the server is there
        {"max_unfinished_bytes": 2**20, "max_unfinished_bytes_per_address": 2**20},  # the tighter limit holds
        {"shared_memory_bytes": 11 * 2**20},
        {"threads": 16, "codec_threads": 16},
        {"threads": 2, "device": "cpu,cpu"},
        {"executor": "sparse"},
        {"access_log": True, "log_level": "debug"},
        {"executor": "reference", "precision": "fp32", "device": "cuda:1"},
    ],
)
def test_settings_that_go_together_are_taken(catalog: Catalog, fields: dict[str, object]) -> None:
    settings = Settings.model_validate({"models": folder(catalog), **SMALL, **fields})
    assert contradictions(settings, catalog, MACHINE) == []


def test_the_defaults_go_together_with_the_shipped_models_on_a_small_machine() -> None:
    settings = load_settings([], {})
    small = replace(MACHINE, cores=1, memory_bytes=2**30)
    assert contradictions(settings, read_catalog(settings.models), small) == []


def test_every_contradiction_is_said_at_once(catalog: Catalog) -> None:
    settings = Settings.model_validate({"models": folder(catalog), **SMALL, "threads": 99, "codec_threads": 64})
    assert len(contradictions(settings, catalog, MACHINE)) == 2


def test_an_executor_that_does_not_run_a_served_family(tmp_path: Path) -> None:
    mdeq = MdeqConfig(name="mdeq", task="segmentation", outputs=3, channels=(8, 8, 8, 8))
    catalog = read_catalog(live.write_configs(tmp_path, (tiny.SEGMENTATION, mdeq)))
    settings = Settings.model_validate({"models": tmp_path, **SMALL, "executor": "sparse"})
    (found,) = contradictions(settings, catalog, MACHINE)
    assert found == (
        f"--executor sparse and --models {tmp_path}: the executor does not run mdeq, of family mdeq; use auto, or take "
        "it out"
    )


@pytest.mark.parametrize(("terms", "longest"), [("", 30_000), ("max_deadline_ms = 500", 500)])
def test_a_budget_file_beyond_the_longest_deadline(catalog: Catalog, tmp_path: Path, terms: str, longest: int) -> None:
    path = tmp_path / "budget.toml"
    settings = Settings.model_validate({"models": folder(catalog), **SMALL, "budget": path})
    path.write_text(f"[clients.camera]\ndefault_deadline_ms = {longest}\n{terms}")
    assert contradictions(settings, catalog, MACHINE) == []
    path.write_text(f"[clients.camera]\ndefault_deadline_ms = {longest + 1}\n{terms}")
    (found,) = contradictions(settings, catalog, MACHINE)
    assert found == (
        f"--budget {path} and --max-deadline-ms 30000: clients.camera.default_deadline_ms of the file is "
        f"{longest + 1}, above the longest deadline there, {longest}; lower it, or raise that"
    )


@pytest.mark.parametrize(
    ("rule", "most", "sentence"),
    [
        (
            "[[traffic]]\nopen_requests",
            128,
            "and --max-open 128: traffic[0].open_requests of the file is 129, and so many",
        ),
        ("[[input]]\npixels", 2**20, "and --max-pixels 1048576: input[0].pixels of the file is 1048577, and a larger "),
    ],
)
def test_a_rule_of_the_budget_file_that_never_holds(
    catalog: Catalog, tmp_path: Path, rule: str, most: int, sentence: str
) -> None:
    path = tmp_path / "budget.toml"
    settings = Settings.model_validate({"models": folder(catalog), **SMALL, "budget": path})
    path.write_text(f"{rule} = {most}\nmax_exit = 2")
    assert contradictions(settings, catalog, MACHINE) == []
    path.write_text(f"{rule} = {most + 1}\nmax_exit = 2")
    (found,) = contradictions(settings, catalog, MACHINE)
    assert found.startswith(f"--budget {path} {sentence}")


def test_an_address_where_no_server_can_listen(catalog: Catalog) -> None:
    def taken(host: str, port: int) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    settings = Settings.model_validate({"models": folder(catalog), **SMALL, "port": 8001})
    (found,) = contradictions(settings, catalog, replace(MACHINE, listen=taken))
    sentence = "no server can listen there (Address already in use); choose another port, or another host"
    assert found == f"--host 127.0.0.1 and --port 8001: {sentence}"


def test_listening_is_tried_on_the_address_itself() -> None:
    try_to_listen("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OSError, match="in use"):
        try_to_listen(*listener.getsockname())
    with pytest.raises(OSError, match="assign requested address"):
        try_to_listen("192.0.2.1", 0)  # for documentation only (RFC 5737), so of no machine


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (
            ["--default-deadline-ms", "600", "--max-deadline-ms", "500"],
            2,
            "--default-deadline-ms 600 and --max-deadline-ms",
        ),
        (["--models", "nowhere"], 1, "there is no folder nowhere"),
        (["--budget", "nowhere"], 1, "there is no file nowhere"),
    ],
)
def test_what_cannot_serve_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["server", *flags])
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(program, "make_server", None)  # nothing is started
    assert program.main() == status
    assert capsys.readouterr().err.startswith(f"python -m server: {sentence}")
