"""API keys: who they belong to, and what they may spend."""

import logging
import os
from pathlib import Path

import pytest

from models.network.configs import GIGA
from server.access import command
from server.access.bucket import Bucket
from server.access.keys import KeyRing, key_digest, new_key, read_keys
from server.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError
from server.requests.budget import Asked

ROBOT, CAMERA = "robot.secret-of-the-robot", "camera.secret-of-the-camera"


def write(path: Path, **terms: str) -> Path:
    """A file of the keys above; `terms`: further lines of each."""
    keys = {"robot": ROBOT, "camera": CAMERA}
    path.write_text(
        "".join(f'[keys.{name}]\nsha256 = "{key_digest(keys[name])}"\n{lines}\n' for name, lines in terms.items())
    )
    return path


def ring(tmp_path: Path, **terms: str) -> KeyRing:
    return KeyRing(write(tmp_path / "keys.toml", **(terms or {"robot": "", "camera": ""})), 0.0)


def test_a_key_names_its_holder(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    assert [keys.identify(key, 0.0) for key in (ROBOT, CAMERA)] == ["robot", "camera"]


@pytest.mark.parametrize(
    "key",
    [
        *(None, "", "robot", "robot.", "robot.wrong", "camera.secret-of-the-robot", f"{ROBOT}x", f"R{ROBOT[1:]}"),
        *(f"robot.{key_digest(ROBOT)}", "nobody.secret", "robot.secret-of-the-r\xf6bot"),
    ],
)
def test_any_other_key_is_a_401(tmp_path: Path, key: str | None) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        ring(tmp_path).identify(key, 0.0)
    assert (caught.value.status, caught.value.code) == (401, "no_key" if key is None else "bad_key")


def test_the_file_holds_no_key(tmp_path: Path) -> None:
    key = new_key("robot")
    assert len(key) == len("robot.") + 43 and key != new_key("robot")
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.robot]\nsha256 = "{key_digest(key)}"\n')
    assert KeyRing(path, 0.0).identify(key, 0.0) == "robot"
    assert key.partition(".")[2] not in path.read_text()


def test_two_digests_hold_while_a_key_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.robot]\nsha256 = ["{key_digest("robot.old")}", "{key_digest("robot.new")}"]\n')
    keys = KeyRing(path, 0.0)
    assert keys.identify("robot.old", 0.0) == keys.identify("robot.new", 0.0) == "robot"


def test_a_key_has_a_rate(tmp_path: Path) -> None:
    keys = ring(tmp_path, robot="requests_per_second = 4\nburst = 2", camera="")
    for _ in range(2):
        keys.admit("robot", None, 0.0)
    with pytest.raises(TooManyRequestsError, match="4 requests a second and 2 at once") as caught:
        keys.admit("robot", None, 0.0)
    assert (caught.value.code, caught.value.retry_after_s) == ("key_rate", 0.25)
    keys.admit("camera", None, 0.0)
    keys.admit("robot", None, 0.25)


def test_a_key_has_a_budget_of_computation(tmp_path: Path) -> None:
    keys = ring(tmp_path, robot="gmacs_per_second = 5", camera="gmacs_per_second = 5\ngmacs_burst = 20")
    for name, burst in (("robot", 50), ("camera", 20)):
        keys.admit(name, None, 0.0)
        keys.spend(name, burst * GIGA, 0.0)
        keys.admit(name, None, 0.0)  # nothing is owed yet
        keys.spend(name, 10 * GIGA, 0.0)
        with pytest.raises(TooManyRequestsError, match="5 GMACs a second") as caught:
            keys.admit(name, None, 0.5)
        assert (caught.value.code, caught.value.retry_after_s) == ("key_budget", 1.5)
        keys.admit(name, None, 2.0)


def test_what_is_refused_is_not_counted(tmp_path: Path) -> None:
    keys = ring(tmp_path, robot="requests_per_second = 1\nburst = 1\ngmacs_per_second = 1\ngmacs_burst = 1")
    keys.spend("robot", 3 * GIGA, 0.0)
    for _ in range(3):
        with pytest.raises(TooManyRequestsError, match="GMACs"):
            keys.admit("robot", None, 1.0)
    keys.admit("robot", None, 2.0)


@pytest.mark.parametrize(
    ("greatest", "asked", "given"), [(2, None, 1), (2, 2, 2), (1, None, 1), (1, 2, None), (0, None, 0), (0, 1, None)]
)
def test_a_key_has_a_greatest_priority(tmp_path: Path, greatest: int, asked: int | None, given: int | None) -> None:
    keys = ring(tmp_path, robot=f"max_priority = {greatest}\nrequests_per_second = 1\nburst = 1")
    if given is None:
        with pytest.raises(ForbiddenError, match=f"at most {greatest}") as caught:
            keys.admit("robot", asked, 0.0)
        assert caught.value.status == 403
        asked = greatest
    assert keys.admit("robot", asked, 0.0) == (greatest if given is None else given)


def test_a_key_has_a_longest_deadline(tmp_path: Path) -> None:
    keys = ring(tmp_path, robot="max_deadline_ms = 250", camera="")
    found = [list(keys.limits(Asked("model", exits=4, client=name))) for name in ("robot", "camera", "192.0.2.1")]
    assert [[(limit.name, limit.seconds) for limit in limits] for limits in found] == [[("key", 0.25)], [], []]


def change(path: Path, text: str) -> None:
    """Write a file anew, with another time of change, however coarse the clock of the file system is."""
    path.write_text(text)
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    keys = ring(tmp_path, robot="", camera="")
    path = tmp_path / "keys.toml"
    change(path, f'[keys.camera]\nsha256 = "{key_digest("camera.new")}"\n')
    assert keys.identify(ROBOT, 0.5) == "robot"  # it looks once a second
    with pytest.raises(UnauthorizedError):
        keys.identify(ROBOT, 1.0)
    assert keys.identify("camera.new", 1.0) == "camera"
    with pytest.raises(UnauthorizedError, match="no longer valid"):  # on a WebSocket that was opened before
        keys.admit("robot", None, 1.0)


def test_a_broken_file_leaves_the_keys_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ring(tmp_path)
    path = tmp_path / "keys.toml"
    change(path, "[keys.robot]\nsha256 = 7\n")
    assert [keys.identify(ROBOT, now_s) for now_s in (1.0, 2.0, 3.0)] == ["robot"] * 3
    path.unlink()
    assert [keys.identify(ROBOT, now_s) for now_s in (4.0, 5.0)] == ["robot"] * 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "keys.robot.sha256" in caplog.records[0].message and "keys.toml" in caplog.records[1].message


def test_what_was_spent_counts_on_while_the_terms_stay(tmp_path: Path) -> None:
    rate = "requests_per_second = 0.001\nburst = 1"
    keys = ring(tmp_path, robot=rate, camera="")
    keys.admit("robot", None, 0.0)
    change(write(tmp_path / "keys.toml", robot=rate), (tmp_path / "keys.toml").read_text())
    with pytest.raises(TooManyRequestsError):
        keys.admit("robot", None, 1.0)
    change(
        write(tmp_path / "keys.toml", robot=f"{rate}\nmax_priority = 1"), (tmp_path / "keys.toml").read_text() + "\n"
    )
    keys.admit("robot", None, 2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[keys.robot]", "sha256 is missing"),
        ('[keys.robot]\nsha256 = "abc"', "give the 64 digits"),
        ("[keys.robot]\nsha256 = []", "give the 64 digits"),
        ('[keys."10.0.0.1"]\nsha256 = "{digest}"', "is no name of a key"),
        ('[keys.robot]\nsha256 = "{digest}"\nrate = 3', "rate is unknown"),
        ('[keys.robot]\nsha256 = "{digest}"\nmax_priority = 3', "at most 2"),
        ('[keys.robot]\nsha256 = "{digest}"\nrequests_per_second = 0', "above 0"),
        ('[keys.robot]\nsha256 = "{digest}"\nburst = 3', "burst limits nothing without requests_per_second; give both"),
        ('[keys.robot]\nsha256 = "{digest}"\ngmacs_burst = 3.0', "gmacs_burst limits nothing without gmacs_per_second"),
        ("[keys", "keys.toml"),
        ("", "it holds no key"),
        ("a = " + "[" * 5000, "nested deeper"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text.format(digest="0" * 64))
    with pytest.raises(ValueError, match=r"keys\.toml") as caught:
        read_keys(path)
    assert words in str(caught.value)


def test_a_pipe_is_no_file_of_keys(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    (tmp_path / "keys.toml").unlink()
    os.mkfifo(tmp_path / "keys.toml")
    assert keys.identify(ROBOT, KeyRing.LOOK_S) == "robot"
    with pytest.raises(ValueError, match="it is a named pipe; put a regular file there"):
        read_keys(tmp_path / "keys.toml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml"):
        KeyRing(tmp_path / "none.toml", 0.0)


def test_a_name_is_no_address() -> None:
    for name in ("", "10.0.0.1", "::1", "a.b", "a b", "1a", "a" * 65):
        with pytest.raises(ValueError, match="is no name of a key"):
            new_key(name)


def test_the_command_prints_a_key_and_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["new", "robot"]) == 0
    _, key, _, _, *lines = capsys.readouterr().out.splitlines()
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(lines))
    assert KeyRing(path, 0.0).identify(key, 0.0) == "robot"
    with pytest.raises(SystemExit) as caught:
        command.main(["new", "10.0.0.1"])
    assert caught.value.code == 2 and "is no name of a key" in capsys.readouterr().err


def test_a_bucket_fills_up_to_its_size_and_may_be_overdrawn() -> None:
    bucket = Bucket(rate=2, size=4, now_s=0.0)
    assert bucket.wait_s(4, 0.0) == 0 and bucket.wait_s(5, 0.0) == 0.5
    bucket.take(10, 0.0)
    assert bucket.wait_s(0, 0.0) == 3.0 and bucket.wait_s(1, 1.0) == 2.5
    assert bucket.wait_s(4, 1000.0) == 0 and bucket.wait_s(5, 1000.0) == 0.5
