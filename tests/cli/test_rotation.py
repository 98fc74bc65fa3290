"""Logs that several processes write, kept small under their hands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator_cli.rotation import KEPT, Rotation, catch_up, rotate
from tests.cli.service import until

LINES = [f"line {number}" for number in range(1000)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "web.log"
    path.write_text("\n".join(LINES) + "\n")
    return path


def copies(log: Path) -> dict[str, str]:
    """What stands beside the log, by the end of its name."""
    return {path.suffix: path.read_text() for path in log.parent.iterdir() if path != log}


def test_rotation_keeps_every_line_when_nobody_writes(log: Path) -> None:
    rotate(log)
    assert log.read_text() == ""
    assert copies(log)[".1"].splitlines() == LINES


def test_a_process_that_writes_on_goes_on_at_the_beginning_of_the_emptied_log(log: Path) -> None:
    command = f"exec >> '{log}'; echo before; read go; echo after"
    with subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        until(lambda: "before" in log.read_text())
        rotate(log)
        writer.stdin.write(b"go\n")
        writer.stdin.close()
        assert writer.wait(10) == 0
    assert log.read_bytes() == b"after\n"
    assert copies(log)[".1"].splitlines() == [*LINES, "before"]


def test_what_is_written_while_the_log_is_copied_is_in_the_copy(log: Path, tmp_path: Path) -> None:
    with log.open("rb") as source, (tmp_path / "copy").open("wb") as copy:
        catch_up(source, copy)
        with log.open("a") as writer:
            writer.write("one more\n")
        catch_up(source, copy)
    assert (tmp_path / "copy").read_bytes() == log.read_bytes()


def test_only_the_three_newest_copies_are_kept(log: Path) -> None:
    for number in range(KEPT + 2):
        log.write_text(f"time {number}")
        rotate(log)
    assert copies(log) == {".1": "time 4", ".2": "time 3", ".3": "time 2"}


def test_a_log_below_the_size_is_left_alone_and_one_that_has_reached_it_is_not(log: Path) -> None:
    size = log.stat().st_size
    Rotation(pytest.fail, largest=size + 1).look([log])
    assert log.stat().st_size == size
    assert copies(log) == {}
    Rotation(pytest.fail, largest=size).look([log])
    assert log.stat().st_size == 0


def test_a_copy_that_finds_no_room_leaves_the_log_and_the_older_copies_as_they_were(log: Path) -> None:
    before = log.read_text()
    log.with_name("web.log.1").write_text("older")
    log.with_name("web.log.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        rotate(log)
    assert log.read_text() == before
    assert copies(log) == {".1": "older"}


def test_what_keeps_a_log_from_being_rotated_is_told_once_and_tried_again(log: Path) -> None:
    told: list[str] = []
    rotation = Rotation(told.append, largest=1)
    obstacle = log.with_name("web.log.new")
    obstacle.mkdir()
    other = log.with_name("io.log")
    for _ in range(2):
        other.write_text("full")
        rotation.look([log, other])
        assert other.read_text() == ""
    assert told == [f"{log} cannot be rotated: Is a directory"]
    obstacle.rmdir()
    rotation.look([log])
    assert log.read_text() == ""


def test_a_log_that_is_gone_is_told_again_after_it_was_there_again(log: Path) -> None:
    told: list[str] = []
    rotation = Rotation(told.append)
    for present in (False, True, False):
        log.touch() if present else log.unlink()
        rotation.look([log])
    assert [each.partition(": ")[2].partition(";")[0] for each in told] == ["somebody deleted it"] * 2
