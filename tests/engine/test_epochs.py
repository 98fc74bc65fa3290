"""Epochs of the state: an engine that replaces another begins without its states, and the first finds its own again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from models.engine.config import read_config
from models.engine.control import digest_of
from models.engine.divergence import verify
from models.engine.lines import FORMAT, BrokenExport, Writer
from models.engine.replay import replay
from models.kernel.errors import InvalidSettings
from orchestrator_cli import migrate
from tests.engine import desk
from tests.engine.carried import carry_out, exported
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, trade

BTC = "BTC-USD"


def regime_of(request: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
    given = request["input"]
    output = {**desk.OUTPUT, "symbol": given["symbol"], "timestamp": given["timestamp"], "drivers": [json.dumps(state)]}
    decision = {"selected_output": output, "effective_confidence": 0.5, "transition": {}}
    return {"ok": {"regime_output": output, "hysteresis_decision": decision, "state": state}}


def counts(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first engine: it counts its runs."""
    return regime_of(request, {"count": (request["state"] or {"count": 0})["count"] + 1})


def sums(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its successor, which cannot read what the first one left."""
    before = request["state"] or {"sum": 0}
    if "sum" not in before:
        return {"error_kind": "hysteresis_state_failure", "error_detail": "the stored state cannot be restored"}
    return regime_of(request, {"sum": before["sum"] + 10})


def both(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a replay asks that goes over a change of engines: the configuration says which of them it was."""
    return (sums if (request.get("config") or {}).get("engine") == "sums" else counts)(request)


def configure(epoch: int, engine: str = "counts") -> None:
    hysteresis = {"engine": engine}
    desk.configure(engine={"engine_mode": "hysteresis", "hysteresis": hysteresis, "state_epoch": epoch})


def tick(n: int) -> None:
    """Plan the n-th tick, and have it carried out."""
    at = START_MS + n * INTERVAL_MS
    desk.append(trade(), inputs(at), now_ms=at)
    desk.plan(at + DELAY_MS + 1)
    carry_out(both)


@pytest.fixture
def changed(database: str) -> None:
    """Two runs of the first engine, two of its successor in an epoch of its own, two of the first one again."""
    configure(0)
    desk.start()
    desk.plan(START_MS)
    for n, (epoch, engine) in enumerate([(0, "counts"), (0, "counts"), (7, "sums"), (7, "sums"), (0, "counts")], 1):
        configure(epoch, engine)
        tick(n)


def states() -> list[tuple[int, Any]]:
    question = "SELECT state_epoch, state FROM engine_states WHERE symbol = 'BTC-USD' ORDER BY number"
    return [(row["state_epoch"], json.loads(row["state"])) for row in desk.rows(question)]


@pytest.mark.usefixtures("changed")
def test_a_run_goes_on_from_the_newest_state_of_its_own_epoch() -> None:
    assert states() == [(0, {"count": 1}), (0, {"count": 2}), (7, {"sum": 10}), (7, {"sum": 20}), (0, {"count": 3})]
    assert {run["error_kind"] for run in desk.runs() if run["symbol"] == BTC} == {None}


def test_without_an_epoch_of_its_own_a_successor_is_given_what_it_cannot_read(database: str) -> None:
    configure(0)
    desk.start()
    desk.plan(START_MS)
    tick(1)
    configure(0, "sums")
    tick(2)
    assert [run["error_kind"] for run in desk.runs() if run["symbol"] == BTC] == [None, "hysteresis_state_failure"]


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("since", [1, 2, 3, 4, 5])
def test_every_part_of_an_export_replays_over_the_change_to_the_bytes_that_were_published(since: int) -> None:
    mine = sorted(run["number"] for run in desk.runs() if run["symbol"] == BTC)
    lines = exported(since_number=mine[since - 1])
    assert verify(lines, both) is None
    assert len([*replay(lines, both)]) == len(mine) - since + 1


@pytest.mark.usefixtures("changed")
def test_a_part_holds_the_state_of_each_epoch_before_it() -> None:
    last = max(run["number"] for run in desk.runs() if run["symbol"] == BTC)
    found = [body for line in exported(since_number=last) if (body := json.loads(line))["kind"] == "state"]
    assert [(each["symbol"], each["state_epoch"], each["state"]) for each in found] == [
        (BTC, 0, {"count": 2}),
        (BTC, 7, {"sum": 20}),
    ]


def older(line: bytes) -> dict[str, Any]:
    """A line as it was written before there were epochs."""
    body: dict[str, Any] = json.loads(line)
    body.pop("state_epoch", None)
    body.pop("check")
    if body["kind"] == "config":
        body["body"]["engine"].pop("state_epoch", None)
    return body


def test_an_export_from_before_there_were_epochs_is_read(database: str) -> None:
    configure(0)
    desk.start()
    desk.plan(START_MS)
    tick(1)
    tick(2)
    writer, made = Writer(), []
    for body in map(older, exported(since_number=max(run["number"] for run in desk.runs()))):
        kind = body.pop("kind")
        made.append(writer.end(unfinished=0, dropped=0) if kind == "end" else writer.line(kind, body))
    assert verify(made, both) is None
    assert b'"count": 2' in b"".join(
        text.encode().replace(b'\\"', b'"') for run in replay(made, both) for text in run.texts
    )


def test_states_from_before_there_were_epochs_are_of_the_first(database: str) -> None:
    configure(0)
    desk.start()
    desk.plan(START_MS)
    tick(1)
    migrate.downgrade(database, "0009")
    migrate.upgrade(database)
    tick(2)
    assert states() == [(0, {"count": 1}), (0, {"count": 2})]


@pytest.mark.parametrize("epoch", ["0", True, 1.5, None])
def test_an_epoch_of_an_export_that_is_no_number_is_refused(epoch: Any) -> None:
    writer = Writer()
    header = writer.line("header", {"format": FORMAT, "first_ingest_seq": 1, "symbols": {BTC: [1, 1]}})
    state = writer.line("state", {"symbol": BTC, "state": {}, "state_epoch": epoch})
    with pytest.raises(BrokenExport, match=r"line 2: state_epoch is .*, no whole number"):
        list(replay([header, state], both))


@pytest.mark.parametrize("epoch", [-1, 1.0, "1", True, 2**31])
def test_an_epoch_is_a_small_whole_number(epoch: Any) -> None:
    with pytest.raises(InvalidSettings, match=r"engine\.state_epoch: must be"):
        read_config(desk.body(engine={"state_epoch": epoch}))


def test_a_configuration_without_an_epoch_is_the_one_that_was_accepted_before_there_were_any() -> None:
    """Otherwise an upgrade would make a new version of each file, and take the place of what was accepted since."""
    before = read_config(desk.body()).body()
    assert "state_epoch" not in before["engine"]
    assert digest_of(read_config(desk.body(engine={"state_epoch": 0})).body()) == digest_of(before)
    assert read_config(desk.body(engine={"state_epoch": 3})).body()["engine"]["state_epoch"] == 3
