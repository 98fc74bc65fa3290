"""One id joins a request, its answer, its ledger rows and its log lines; and no line holds a secret."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from models.kernel.logs import JsonLines
from tests.web.service import DRIVE, Api, assert_problem, carry_out, each, rows

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process logs, DEBUG and up, as it would be written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines("web"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.setLevel(level)
    root.removeHandler(handler)


def parsed(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


@each("offered", ["mine", "a", "A.b_c:d-e", "0" * 64, "3f2504e0-4f89-11d3-9a0c-0305e82c3301"])
def test_a_usable_correlation_id_is_echoed(api: Api, offered: str) -> None:
    assert api.get("/tickets", headers={"X-Correlation-Id": offered}).headers["X-Correlation-Id"] == offered


@each("offered", [None, "", " ", "a b", "x" * 65, "é", "a/b", '"', "<script>", "\x00", "a,b", "%0d%0aSet-Cookie:x"])
def test_an_unusable_one_is_replaced_by_a_uuid(api: Api, offered: str | None) -> None:
    headers = {} if offered is None else {"X-Correlation-Id": offered}
    assert UUID.fullmatch(api.get("/tickets", headers=headers).headers["X-Correlation-Id"])


def test_each_request_gets_an_id_of_its_own(api: Api) -> None:
    assert len({api.get("/healthz").headers["X-Correlation-Id"] for _ in range(20)}) == 20


def test_every_answer_carries_one_also_where_there_is_nothing(anonymous: Api) -> None:
    for path in ("/", "/nowhere", "/tickets", "/docs", "/openapi.json", "/metrics", "/static/docs.js"):
        assert UUID.fullmatch(anonymous.get(path).headers["X-Correlation-Id"]), path


def test_the_ledger_row_of_an_act_and_all_that_follows_from_it_carry_its_id(api: Api) -> None:
    made = api.post("/ticket", json=DRIVE, headers={"X-Correlation-Id": "birth-1"}).get_json()["id"]
    wanted = {"X-Correlation-Id": "run-2", "Prefer": "respond-async"}
    assert api.post("/execute", json={"ticket_id": made}, headers=wanted).status_code == 202
    carry_out(made)
    told = rows("SELECT topic, correlation_id FROM ledger WHERE subject_id = :id ORDER BY seq", id=made)
    assert [(row["topic"], row["correlation_id"]) for row in told] == [
        ("ticket_created", "birth-1"), ("ticket_queued", "run-2"), ("execution_started", "run-2"),
        ("execution_completed", "run-2"),
    ]  # fmt: skip


def test_the_log_line_of_a_request_carries_its_id_its_action_and_its_caller(api: Api, lines: io.StringIO) -> None:
    api.get("/tickets?limit=1", headers={"X-Correlation-Id": "seen-1"})
    (line,) = [line for line in parsed(lines) if line["message"] == "answered"]
    assert {name: line[name] for name in ("correlation_id", "action", "status", "caller", "role")} == {
        "correlation_id": "seen-1", "action": "GET /tickets", "status": 200, "caller": "admin", "role": "web",
    }  # fmt: skip
    assert isinstance(line["ms"], float)


def test_the_log_lines_of_a_ticket_s_requests_name_the_ticket(api: Api, lines: io.StringIO) -> None:
    made = api.post("/ticket", json=DRIVE).get_json()["id"]
    api.get(f"/ticket/{made}")
    api.post(f"/ticket/{made}/cancel")
    named = [line["action"] for line in parsed(lines) if line.get("ticket_id") == made]
    assert named == ["POST /ticket", f"GET /ticket/{made}", f"POST /ticket/{made}/cancel"]


def test_a_request_s_id_does_not_stick_to_what_is_logged_after_it(api: Api, lines: io.StringIO) -> None:
    api.get("/tickets", headers={"X-Correlation-Id": "gone-1"})
    assert_problem(api.get("/nowhere", headers={"X-Correlation-Id": "gone-2"}), 404)
    logging.getLogger("after").info("afterwards")
    assert "correlation_id" not in parsed(lines)[-1]


def test_no_log_line_holds_a_credential(api: Api, anonymous: Api, admin_key: str, lines: io.StringIO) -> None:
    wrong = "orc_0123456789ab_" + "s" * 32
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9mLW5vdGhpbmc"
    api.create()
    api.get("/tickets?cursor=x")
    for credential in (wrong, jwt):
        anonymous.get("/tickets", headers={"X-API-Key": credential})
        anonymous.post("/ticket", json=DRIVE, headers={"Authorization": f"Bearer {credential}"})
        anonymous.get("/tickets", headers={"Authorization": f"Basic {credential}"})
    written = lines.getvalue()
    assert "not authenticated" in written
    for secret in (admin_key, admin_key.split("_", 2)[2], wrong, wrong.split("_", 2)[2], jwt, jwt.split(".")[2]):
        assert secret not in written


def test_a_newline_in_a_path_cannot_forge_a_log_line(api: Api, lines: io.StringIO) -> None:
    assert_problem(api.get('/nowhere%0a{"message": "forged"}'), 404)
    assert "forged" not in [line["message"] for line in parsed(lines)]
