"""What the command line takes and how it answers, in this process: usage errors, moments, durations, stalls."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from models.engine.events import EVENT_TYPES
from models.engine.states import RUN
from models.engine.tables import MODES
from orchestrator_cli.commands.engine import facts_of_status, outputs, runs
from orchestrator_cli.main import main
from orchestrator_cli.output import facts, table
from orchestrator_cli.service import Service
from orchestrator_cli.stalls import find_stalls
from orchestrator_cli.watching import line_of_output

NOON_MS = 1_795_262_400_000  # 2026-11-21


@pytest.mark.parametrize(
    "words",
    [
        ["--nothing"],
        ["nothing"],
        ["engine", "nothing"],
        ["engine", "runs", "--nothing"],
        ["engine", "runs", "--status", "nothing"],
        ["engine", "runs", "--from", "noon"],
        ["engine", "export"],
        ["migrate"],
    ],
)
def test_words_that_are_not_understood_are_an_error_as_any_other(words: list[str]) -> None:
    done = CliRunner().invoke(main, [*words, "--json"])
    told = json.loads(done.stderr)
    assert (done.exit_code, done.stdout, told["code"]) == (2, "", "wrong_usage")
    assert "--help` says what it takes" in told["next_step"]


def test_a_word_that_is_not_understood_is_told_in_two_lines() -> None:
    done = CliRunner().invoke(main, ["engine", "runs", "--statu", "failed"])
    happened, following = done.stderr.splitlines()
    assert happened.startswith("orchestrator: No such option '--statu'")
    assert following == "  next: `orchestrator engine runs --help` says what it takes"
    assert done.exit_code == 2


@pytest.mark.parametrize("words", [[], ["engine"], ["engine", "marks"]])
def test_a_group_without_a_command_shows_its_help(words: list[str]) -> None:
    assert "Commands:" in CliRunner().invoke(main, words).output


def choices(command: click.Command, name: str) -> set[str]:
    (found,) = [each.type for each in command.params if each.name == name]
    assert isinstance(found, click.Choice)
    return set(found.choices)


def test_filters_offer_what_the_engine_knows() -> None:
    assert choices(runs, "status") == RUN.states
    assert choices(runs, "mode") == set(MODES)
    assert choices(outputs, "event_type") == set(EVENT_TYPES)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("engine_timestamp_ms", NOON_MS, "engine timestamp  2026-11-21T12:00:00Z"),
        ("planned_ts_ms", NOON_MS + 7, "planned at  2026-11-21T12:00:00.007Z"),
        ("scheduler_next_tick_ms", None, "scheduler next tick  -"),
        ("engine_timestamp_ms", 10**16, f"engine timestamp  {10**16} ms since 1970"),
        ("created_at", "2026-11-21T13:00:00.123456+01:00", "created at  2026-11-21T12:00:00.123Z"),
        ("created_at", "whenever", "created at  whenever"),
        ("lag_ms", 9999, "lag  9999 ms"),
        ("lag_ms", 12_345, "lag  12.3 s"),
        ("age_ms", 36 * 3_600_000, "age  36 h"),
        ("every_seconds", 0.5, "every  0.5 s"),
        ("timeout_seconds", 30, "timeout  30 s"),
        ("timeout_seconds", 86_400, "timeout  24 h"),
        ("depth", 12_345, "depth  12345"),
        ("ready", True, "ready  true"),
    ],
)
def test_moments_are_read_in_utc_and_durations_with_their_unit(name: str, value: Any, line: str) -> None:
    assert facts({name: value}) == [line]
    label, _, text = line.partition("  ")
    assert table([name], [{name: value}]) == [label.upper(), text]


def test_the_workers_engines_are_told_in_words() -> None:
    engines = [
        {"engine_module": "new", "engine_version": "2.0", "workers": 1},
        {"engine_module": "old", "engine_version": None, "workers": 3},
    ]
    assert facts_of_status({"engines": engines}) == ["engines  new 2.0 (1 workers),old - (3 workers)"]
    assert facts_of_status({"engines": []}) == ["engines  -"]


def test_a_followed_output_begins_with_its_symbol_and_its_moment() -> None:
    event = {"symbol": "BTC-USD", "engine_timestamp_ms": NOON_MS, "event_type": "EngineRunStarted", "attempt": 1}
    assert line_of_output(event).startswith("BTC-USD  2026-11-21T12:00:00Z  EngineRunStarted")


class Told(Service):
    """A service of which no part is missing."""

    def get(self, path: str, **params: Any) -> Any:
        return {"status": "ready", "missing": []}


def test_a_tick_that_is_far_overdue_stands_still_and_one_that_is_a_little_late_does_not() -> None:
    service = Told("http://nowhere", "x")
    assert find_stalls(service, {"scheduler": {"overdue_ms": 10_000}}) == []
    (line,) = find_stalls(service, {"scheduler": {"overdue_ms": 30_000}})
    assert line.startswith("the next tick is 30 s overdue")
