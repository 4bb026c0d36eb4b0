"""The commands and programs of every page run as they stand, against the real server; or it says here why not."""

import ast
import re
import shlex
import subprocess

import pytest
from adpc_client.__main__ import main as adpc
from pages import PAGES, ROOT, adapted, commands, programs

import models.__main__
from server import errors
from server.settings import load_settings
from server.simulation.command import main as simulate

NOT_HERE = {
    "make": "sets up or tests a whole checkout",
    "pip install": "needs the network",
    "adpc load": "takes a minute; tests/test_client_load_command.py runs it",
    "curl -H Authorization": "needs the key that the line before prints; tests/test_keys_live.py does that",
    "python -m server": "serves until it is stopped; tests/test_server.py and tests/test_keys_live.py run it",
    "python -m server simulate": "takes minutes; tests/test_simulate_command.py runs it on less traffic",
    "docker": "needs Docker; tests/test_deploy.py reads its files",
    "kubectl apply": "needs a cluster; tests/test_deploy.py reads its files",
    "export": "sets variables for the lines after it",
    "ray start": "needs Ray; tests/acceptance_ray.py runs it",
    "serve run": "needs Ray; tests/acceptance_ray.py runs it",
    "ANYTIME_THREADS=4 uvicorn": "serves until it is stopped; tests/test_hosts.py runs it",
    "ANYTIME_THREADS=4 hypercorn": "serves until it is stopped; tests/test_hosts.py runs it",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python": "needs a collector; tests/test_spans.py plays one",
    "python -m models gpu-day": "needs a GPU; tests/test_gpu_day.py plays one",
    "python -m models import": "needs a released checkpoint; tests/test_checkpoint.py makes one",
    "python -m models train": "takes hours; tests/test_train.py runs it on a tiny network",
    "python -m models evaluate": "needs a data set; tests/test_evaluate.py makes one",
    "python -m models calibrate": "needs a data set; tests/test_calibrate.py makes one",
    "python -m models quantise": "needs a data set; tests/test_quantise.py makes one",
    "python -m models picture": "needs a trained model; tests/test_picture.py makes one",
    "python -m models compare": "takes days; tests/test_compare.py runs it on tiny networks",
    "python -m models export": "takes half a minute; tests/test_onnx.py runs it on a tiny network",
    "python tests/acceptance_follow.py": "takes minutes on idle cores",
    "python tests/acceptance_capacity.py": "takes minutes on idle cores",
}
"""The beginnings of commands that the pages name and this file does not run, with the reason."""
RUNS = ("adpc", "curl", "python -m models list", "python -m models show")


def begins(command, beginning):
    words = beginning.split()
    return [word.partition(":")[0] for word in command[: len(words)]] == [word.partition(":")[0] for word in words]


def why_not(command):
    return next((reason for beginning, reason in NOT_HERE.items() if begins(command, beginning)), None)


ALL = [(page, command) for page in PAGES for command in commands(page)]
TRIED = [(page, command) for page, command in ALL if why_not(command) is None]


def test_pages_have_commands():
    assert {"README.md", "docs/protocol.md", "docs/client.md", "docs/weights.md"} <= {page for page, _ in TRIED}
    assert len(TRIED) >= 20


@pytest.mark.parametrize(("page", "command"), TRIED, ids=[f"{page}-{' '.join(words)}"[:70] for page, words in TRIED])
def test_a_command_runs(page, command, place, live_url, capfd):
    words = shlex.split(adapted(shlex.join(command), live_url))
    if words[0] == "adpc":
        assert adpc(words[1:]) == 0
    elif words[0] == "curl":
        ended = subprocess.run([*words, "-sS"], check=False, capture_output=True, timeout=60)
        assert ended.returncode == 0 and (ended.stdout or (place / words[words.index("-o") + 1]).stat().st_size), ended
    else:
        assert command[:3] == ["python", "-m", "models"]
        assert models.__main__.main(command[3:]) == 0 and capfd.readouterr().out


HELPED = {  # what tells the flags of a program
    "python -m models": lambda words: models.__main__.main([words[3], "--help"]),
    "python -m server simulate": lambda _: simulate(["--help"]),
    "python -m server --": lambda _: load_settings(["--help"]),
    "adpc": lambda words: adpc([words[1], "--help"]),
}


def flags(command):
    return {word for word in command if word.startswith("--")}


@pytest.mark.parametrize("beginning", HELPED)
def test_the_flags_of_a_page_are_those_of_the_program(beginning, capsys):
    for page, command in ALL:
        if " ".join(command).startswith(beginning) and flags(command):
            with pytest.raises(SystemExit):
                HELPED[beginning](command)
            told = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
            assert flags(command) <= told, f"{page}: {' '.join(command)}"


@pytest.mark.parametrize("beginning", NOT_HERE)
def test_what_is_not_tried_is_on_a_page(beginning):
    assert any(begins(command, beginning) for _, command in ALL)
    named = re.findall(r"tests/\w+\.py", NOT_HERE[beginning])
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)])
def test_the_python_of_a_page(page, place, live_url):
    tried = [program for program in programs(page) if "adpc_client.load" not in program]  # see test_client_load_runner
    assert tried
    for program in tried:
        exec(compile(adapted(program, live_url), page, "exec"), {})


# --- what pages say ---


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
            assert "://" in link or ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_anchors_are_headings():
    def anchor(heading):
        return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

    def headings(path):
        return {anchor(found) for found in re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)}

    for page in PAGES:
        for link, name in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", (ROOT / page).read_text()):
            path = (ROOT / page).parent / link if link else ROOT / page
            assert name in headings(path), f"{page}: {link}#{name}"


def test_every_error_code_is_in_the_reference():
    kinds = "|".join(
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ServerError)
    )
    calls = [
        call
        for path in (ROOT / "server").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and len(call.args) > 1 and re.fullmatch(kinds, ast.unparse(call.func))
    ]
    codes = {code.value for _, code, *_ in (call.args for call in calls) if isinstance(code, ast.Constant)}
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "protocol.md").read_text()))
    assert len(codes) > 40 and codes - told == set()
