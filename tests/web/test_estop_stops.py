"""Which robots have taken the stop that an e-stop ordered: told in every answer, and waited for by a release."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from models.kernel.session import statement
from models.tickets import estop
from models.tickets.stops import confirm_stop, list_untaken_stops, postpone_stop, repeat_stop
from tests.web.service import DRIVE, Api, assert_problem, each, take


@pytest.fixture
def moving(api: Api) -> str:
    """A drive of `crane` on its way."""
    ticket_id = str(api.create(**DRIVE, target="crane")["id"])
    api.accept(ticket_id)
    take(ticket_id)
    return ticket_id


def order() -> Any:
    with statement() as connection:
        (only,) = list_untaken_stops(connection)
    return only


def refuse() -> None:
    with statement() as connection:
        postpone_stop(connection, order()["id"], "bus hangs")


def confirm(number: int) -> None:
    with statement() as connection:
        confirm_stop(connection, number)


def repeat(number: int) -> None:
    """Taken, and to be sent again: the revoked drive may still be on its way."""
    with statement() as connection:
        repeat_stop(connection, number, order()["ordered_at"], 10, 10)


def engage(api: Api, scope: str = "crane") -> dict[str, Any]:
    return dict(api.post("/estop", json={"scope": scope, "reason": "smoke"}).get_json())


def release(api: Api, scope: str = "crane", **body: Any) -> Any:
    return api.call("DELETE", "/estop", json={"scope": scope, "reason": "clear", **body})


@pytest.mark.parametrize("scope", ["all", "crane"])
def test_an_answer_names_the_robots_that_have_not_taken_their_stop(api: Api, moving: str, scope: str) -> None:
    answer = engage(api, scope)
    assert (answer["stopped"], answer["stops"]) == ([moving], {"owed": 1, "taken": 0})
    refuse()
    read = api.get("/estop").get_json()
    (owed,) = read["owed_stops"]
    assert owed.pop("ordered_at")
    assert owed == {"target": "crane", "ticket_id": moving, "tries": 1, "error": "bus hangs"}
    assert "orchestrator_stops_owed 1.0" in api.get("/metrics").get_data(as_text=True)


@pytest.mark.parametrize("before", ["list_untaken_stops", "count_taken_stops"])
def test_a_stop_that_is_taken_while_stops_are_counted_is_counted_once(
    api: Api, moving: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    engage(api)
    act, number = getattr(estop, before), order()["id"]

    def acting(*given: Any) -> Any:
        found = act(*given)
        confirm(number)
        return found

    monkeypatch.setattr(estop, before, acting)
    stops = api.get("/estop").get_json()["stops"]
    assert stops["owed"] + stops["taken"] == 1


@pytest.mark.parametrize("taken", [confirm, repeat])
def test_a_stop_that_was_taken_is_counted_and_owed_no_longer(api: Api, moving: str, taken: Any) -> None:
    engage(api)
    taken(order()["id"])
    read = api.get("/estop").get_json()
    assert (read["stops"], read["owed_stops"]) == ({"owed": 0, "taken": 1}, [])
    assert engage(api)["stops"] == {"owed": 0, "taken": 1}
    assert "orchestrator_stops_owed 0.0" in api.get("/metrics").get_data(as_text=True)
    assert release(api).status_code == 200


@pytest.mark.parametrize("scope", ["all", "crane"])
def test_a_release_is_refused_while_a_robot_has_not_taken_its_stop(api: Api, moving: str, scope: str) -> None:
    engage(api, scope)
    for _ in range(2):
        problem = assert_problem(release(api, scope), 409)
        assert problem["code"] == "estop_stops_owed"
        assert "crane" in problem["detail"]
        assert api.get("/estop").get_json()["engaged"] is True
        refuse()
    confirm(order()["id"])
    assert release(api, scope).get_json()["changed"] is True


def test_an_admin_may_force_a_release_and_is_told_what_is_still_owed(api: Api, moving: str) -> None:
    engage(api)
    answer = release(api, force=True).get_json()
    assert (answer["changed"], answer["engaged"], answer["stops"]["owed"]) == (True, False, 1)
    assert answer["owed_stops"][0]["target"] == "crane"


@each("force", ["true", 1, None, []])
def test_force_is_true_or_false(api: Api, moving: str, force: Any) -> None:
    engage(api)
    problem = assert_problem(release(api, force=force), 422)
    assert problem["errors"][0]["pointer"] == "/force"
    assert api.get("/estop").get_json()["engaged"] is True


def test_another_robots_stop_keeps_no_release_waiting(api: Api, moving: str) -> None:
    engage(api)
    assert engage(api, "rover")["stops"] == {"owed": 0, "taken": 0}
    assert release(api, "rover").status_code == 200


def test_only_the_first_request_sweeps_and_only_what_moves(api: Api, app: Flask, moving: str) -> None:
    queued = api.create(**DRIVE, target="crane")["id"]
    api.accept(queued)
    first, second = engage(api), engage(api)
    assert [(one["revoked"], one["left"]) for one in (first, second)] == [(1, 1), (0, 1)]
    assert first["stopped"] == second["stopped"] == [moving]
