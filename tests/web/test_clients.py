"""Administrators manage clients and keys; no secret is shown twice, and nobody shuts the last administrator out."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from models.kernel import administration, clients
from models.kernel.clients import OPERATOR
from models.kernel.errors import Conflict
from models.kernel.session import transaction
from tests.kernel.races import meanwhile
from tests.web.service import Api, assert_problem, counts, each, key_with, rows

ADA = {"name": "ada", "permissions": ["read", "write"]}
KEY = {"Idempotency-Key": "once"}


def made_key(api: Api, name: str = "ada", **life: Any) -> dict[str, Any]:
    answer = api.post(f"/clients/{name}/keys", json=life)
    assert answer.status_code == 201, answer.text
    return dict(answer.get_json())


@pytest.fixture
def ada(api: Api) -> dict[str, Any]:
    answer = api.post("/clients", json=ADA)
    assert answer.status_code == 201, answer.text
    return dict(answer.get_json())


def told() -> list[tuple[str, str, str]]:
    """What the ledger knows of clients: topic, client, actor; the fixtures' own acts apart."""
    found = rows("SELECT topic, subject_id, actor FROM ledger WHERE subject_kind = 'client' ORDER BY seq")
    return [tuple(row.values()) for row in found if row["actor"] != OPERATOR.name]  # type: ignore[misc]


def test_a_client_is_made_read_and_listed(api: Api, ada: dict[str, Any]) -> None:
    assert {name: ada[name] for name in ada if name != "created_at"} == {
        "name": "ada", "tenant": "default", "permissions": ["read", "write"], "rate_limit": None,
        "disabled": False, "disabled_at": None,
    }  # fmt: skip
    assert api.get("/clients/ada").get_json() == ada
    assert [row["name"] for row in api.get("/clients").get_json()["clients"]] == ["ada", "admin"]


def test_a_name_that_is_taken_is_409_and_changes_nothing(api: Api, ada: dict[str, Any]) -> None:
    refused = api.post("/clients", json={"name": "ada", "permissions": ["admin"]})
    assert assert_problem(refused, 409)["code"] == "client_exists"
    assert api.get("/clients/ada").get_json() == ada


def test_a_change_holds_for_its_keys_at_once_in_this_process(app: Flask, api: Api, ada: dict[str, Any]) -> None:
    caller = Api(app, made_key(api)["key"])
    assert caller.create()["status"] == "pending"
    changed = api.call("PATCH", "/clients/ada", json={"permissions": ["read"], "rate_limit": 5})
    assert (changed.status_code, changed.get_json()["permissions"]) == (200, ["read"])
    assert caller.post("/ticket", json={"command": "scan"}).status_code == 403
    assert caller.get("/tickets").headers["X-RateLimit-Limit"] == "5"
    assert api.call("PATCH", "/clients/ada", json={"disabled": True}).get_json()["disabled"] is True
    assert caller.get("/tickets").status_code == 401
    again = api.call("PATCH", "/clients/ada", json={"disabled": False, "rate_limit": None}).get_json()
    assert (again["disabled"], again["disabled_at"], again["rate_limit"]) == (False, None, None)
    assert caller.get("/tickets").status_code == 200


def test_what_a_change_leaves_out_stays(api: Api, ada: dict[str, Any]) -> None:
    assert api.call("PATCH", "/clients/ada", json={}).get_json() == ada
    assert api.call("PATCH", "/clients/ada", json={"tenant": "lab"}).get_json() == {**ada, "tenant": "lab"}


def test_a_key_s_secret_is_shown_once_and_kept_nowhere(app: Flask, api: Api, ada: dict[str, Any]) -> None:
    made = made_key(api)
    assert Api(app, made["key"]).get("/tickets").status_code == 200
    (listed,) = api.get("/clients/ada/keys").get_json()["keys"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    secret = made["key"].split("_", 2)[2]
    for table in ("ledger", "idempotency_keys", "api_keys"):
        assert secret not in str(rows(f"SELECT * FROM {table}"))


def test_a_repeated_idempotency_key_tells_of_the_key_without_its_secret(api: Api, ada: dict[str, Any]) -> None:
    first, again = (api.post("/clients/ada/keys", json={}, headers=KEY) for _ in range(2))
    assert again.get_json() == {**first.get_json(), "key": None}
    assert counts()["api_keys"] == 2  # the administrator's own among them
    kept = rows("SELECT convert_from(answer, 'UTF8') AS said FROM idempotency_keys")
    assert first.get_json()["key"].split("_", 2)[2] not in str(kept)


def test_a_key_with_a_life_ends_by_itself(app: Flask, api: Api, ada: dict[str, Any]) -> None:
    made = made_key(api, expires_in_seconds=3600)
    assert Api(app, made["key"]).get("/tickets").status_code == 200
    (life,) = rows(
        "SELECT extract(epoch FROM expires_at - created_at)::float AS s FROM api_keys WHERE id = :id", id=made["id"]
    )
    assert 3599 < life["s"] < 3601


def test_a_rotated_key_works_beside_the_new_one_until_the_overlap_ends(
    app: Flask, api: Api, ada: dict[str, Any]
) -> None:
    old = made_key(api)
    rotated = api.post(f"/clients/ada/keys/{old['id']}/rotate", json={"overlap_seconds": 600})
    new = rotated.get_json()
    assert (rotated.status_code, new["expires_at"]) == (201, None)
    for key in (old, new):
        assert Api(app, key["key"]).get("/tickets").status_code == 200
    listed = {row["id"]: row["expires_at"] for row in api.get("/clients/ada/keys").get_json()["keys"]}
    assert listed[old["id"]] is not None


def test_a_key_rotated_without_overlap_ends_at_once(app: Flask, api: Api, ada: dict[str, Any]) -> None:
    old = made_key(api)
    caller = Api(app, old["key"])
    assert caller.get("/tickets").status_code == 200
    new = api.post(f"/clients/ada/keys/{old['id']}/rotate", json={}).get_json()
    assert caller.get("/tickets").status_code == 401
    assert Api(app, new["key"]).get("/tickets").status_code == 200
    refused = api.post(f"/clients/ada/keys/{old['id']}/rotate", json={})
    assert assert_problem(refused, 409)["code"] == "key_ended"


def test_an_overlap_never_lengthens_a_life(api: Api, ada: dict[str, Any]) -> None:
    old = made_key(api, expires_in_seconds=60)
    api.post(f"/clients/ada/keys/{old['id']}/rotate", json={"overlap_seconds": 6000})
    listed = {row["id"]: row["expires_at"] for row in api.get("/clients/ada/keys").get_json()["keys"]}
    assert listed[old["id"]] == old["expires_at"]


def test_a_revoked_key_opens_nothing_and_stays_revoked(app: Flask, api: Api, ada: dict[str, Any]) -> None:
    made = made_key(api)
    caller = Api(app, made["key"])
    assert caller.get("/tickets").status_code == 200
    first, again = (api.call("DELETE", f"/clients/ada/keys/{made['id']}") for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.get_json()["revoked_at"] == again.get_json()["revoked_at"] is not None
    assert caller.get("/tickets").status_code == 401


def test_every_act_is_told_to_the_ledger_with_who_did_it(api: Api) -> None:
    api.post("/clients", json=ADA)
    key = made_key(api)
    new = api.post(f"/clients/ada/keys/{key['id']}/rotate", json={}).get_json()
    api.call("DELETE", f"/clients/ada/keys/{new['id']}")
    api.call("DELETE", f"/clients/ada/keys/{new['id']}")
    api.call("PATCH", "/clients/ada", json={"disabled": True})
    topics = ["created", "key_issued", "key_rotated", "key_issued", "key_revoked", "changed"]
    assert told() == [(f"client.{topic}", "ada", "admin") for topic in topics]


def test_lists_go_on_by_cursor_without_gap_or_repetition(api: Api) -> None:
    for number in range(5):
        api.post("/clients", json={"name": f"c{number}", "permissions": []})
        made_key(api, "c0")
    for path, title, name, total in (("/clients", "clients", "name", 6), ("/clients/c0/keys", "keys", "id", 5)):
        found, url = [], f"{path}?limit=2"
        while url:
            page = api.get(url).get_json()
            found += [row[name] for row in page[title]]
            url = page["next_cursor"] and f"{path}?limit=2&cursor={page['next_cursor']}"
        assert len(found) == len(set(found)) == total
        assert found == [row[name] for row in api.get(path).get_json()[title]]


def test_a_cursor_of_another_list_is_refused(api: Api) -> None:
    for name in ("c0", "c1"):
        api.post("/clients", json={"name": name, "permissions": []})
        made_key(api, name)
        made_key(api, name)
    cursor = api.get("/clients/c0/keys?limit=1").get_json()["next_cursor"]
    for path in ("/clients", "/clients/c1/keys"):
        assert assert_problem(api.get(f"{path}?cursor={cursor}"), 422)["code"] == "cursor_invalid"


@each(
    "method, path, body",
    [
        ("POST", "/clients", {}),
        ("POST", "/clients", {"name": "", "permissions": []}),
        ("POST", "/clients", {"name": "a b", "permissions": []}),
        ("POST", "/clients", {"name": "ada\n", "permissions": []}),
        ("POST", "/clients", {"name": "a\x00", "permissions": []}),
        ("POST", "/clients", {"name": "\ud800", "permissions": []}),
        ("POST", "/clients", {"name": "x" * 65, "permissions": []}),
        ("POST", "/clients", {"name": 1, "permissions": []}),
        ("POST", "/clients", {"name": "x", "permissions": "read"}),
        ("POST", "/clients", {"name": "x", "permissions": ["wrtie"]}),
        ("POST", "/clients", {"name": "x", "permissions": [None]}),
        ("POST", "/clients", {"name": "x", "permissions": ["read"] * 4}),
        ("POST", "/clients", {"name": "x", "permissions": [], "tenant": "a b"}),
        ("POST", "/clients", {"name": "x", "permissions": [], "tenant": None}),
        ("POST", "/clients", {"name": "x", "permissions": [], "rate_limit": -1}),
        ("POST", "/clients", {"name": "x", "permissions": [], "rate_limit": 10**30}),
        ("POST", "/clients", {"name": "x", "permissions": [], "rate_limit": True}),
        ("POST", "/clients", {"name": "x", "permissions": [], "rate_limit": "5"}),
        ("POST", "/clients", {"name": "x", "permissions": [], "disabled": True}),
        ("PATCH", "/clients/admin", {"name": "other"}),
        ("PATCH", "/clients/admin", {"disabled": "yes"}),
        ("PATCH", "/clients/admin", {"disabled": None}),
        ("PATCH", "/clients/admin", {"permissions": None}),
        ("POST", "/clients/admin/keys", {"expires_in_seconds": 0}),
        ("POST", "/clients/admin/keys", {"expires_in_seconds": 10**12}),
        ("POST", "/clients/admin/keys", {"expires_in_seconds": "1"}),
        ("POST", "/clients/admin/keys", {"key": "mine"}),
        ("POST", "/clients/admin/keys/000000000000/rotate", {"overlap_seconds": -1}),
        ("POST", "/clients/admin/keys/000000000000/rotate", {"overlap_seconds": 10**9}),
        ("POST", "/clients", []),
        ("POST", "/clients", "x"),
    ],
)
def test_what_makes_no_sense_is_422_and_changes_nothing(api: Api, method: str, path: str, body: Any) -> None:
    before = counts("ledger")
    assert_problem(api.call(method, path, json=body), 422, 400)
    assert counts("ledger") == before


@each("query", ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "cursor=x", "cursor=", "page=2", "cursor=%00"])
def test_a_list_asked_for_wrongly_is_422(api: Api, query: str) -> None:
    for path in ("/clients", "/clients/admin/keys"):
        assert_problem(api.get(f"{path}?{query}"), 422)


@each("name", ["nobody", "a%00b", "%F0%9F%98%80", "x" * 65, "a%20b", "..", "%ED%A0%80", "x" * 5000])
def test_a_client_that_is_not_there_is_404(api: Api, name: str) -> None:
    path = f"/clients/{name}"
    for method, rest, body in (
        ("GET", "", None), ("PATCH", "", {"tenant": "lab"}), ("GET", "/keys", None), ("POST", "/keys", {}),
        ("POST", "/keys/000000000000/rotate", {}), ("DELETE", "/keys/000000000000", None),
    ):  # fmt: skip
        options = {} if body is None else {"json": body}
        for headers in ({}, KEY):
            assert_problem(api.call(method, path + rest, headers=headers, **options), 404)


def test_the_key_of_another_client_is_404_under_this_one(api: Api, ada: dict[str, Any]) -> None:
    made = made_key(api)
    for key_id in (made["id"], "x", "0" * 12, "%00", made["id"].upper()):
        assert_problem(api.call("DELETE", f"/clients/admin/keys/{key_id}"), 404)
        assert_problem(api.post(f"/clients/admin/keys/{key_id}/rotate", json={}), 404)


def test_only_administrators_see_or_change_clients(app: Flask, ada: dict[str, Any]) -> None:
    writer = Api(app, key_with("read", "write", name="writer"))
    before = counts("ledger")
    for method, path, body in (
        ("GET", "/clients", None), ("POST", "/clients", ADA), ("GET", "/clients/writer", None),
        ("PATCH", "/clients/writer", {"permissions": ["admin"]}), ("GET", "/clients/writer/keys", None),
        ("POST", "/clients/writer/keys", {}), ("DELETE", "/clients/writer/keys/000000000000", None),
        ("POST", "/clients/writer/keys/000000000000/rotate", {}),
    ):  # fmt: skip
        options = {} if body is None else {"json": body}
        assert_problem(writer.call(method, path, **options), 403)
    assert counts("ledger") == before


@pytest.fixture
def own_key(admin_key: str) -> str:
    return admin_key.split("_")[1]


def shut_out(own_key: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every way to take the last administrator's key away."""
    return [
        ("DELETE", f"/clients/admin/keys/{own_key}", {}),
        ("PATCH", "/clients/admin", {"json": {"disabled": True}}),
        ("PATCH", "/clients/admin", {"json": {"permissions": ["read", "write"]}}),
        ("POST", f"/clients/admin/keys/{own_key}/rotate", {"json": {"expires_in_seconds": 60}}),
    ]


def test_the_last_administrator_cannot_be_shut_out(api: Api, own_key: str) -> None:
    before = counts("ledger")
    for method, path, options in shut_out(own_key):
        refused = api.call(method, path, **options)
        assert assert_problem(refused, 409)["code"] == "last_admin", path
    assert counts("ledger") == before
    assert api.get("/clients").status_code == 200
    assert api.post(f"/clients/admin/keys/{own_key}/rotate", json={}).status_code == 201


@pytest.mark.parametrize("way", range(4))
def test_an_administrator_may_go_when_another_stays(app: Flask, api: Api, own_key: str, way: int) -> None:
    other = Api(app, key_with("admin", name="root"))
    method, path, options = shut_out(own_key)[way]
    assert api.call(method, path, **options).status_code in {200, 201}
    assert other.get("/clients").status_code == 200


@pytest.mark.parametrize("end", ["disabled_at", "revoked_at", "expires_at"])
def test_a_key_that_has_ended_or_soon_will_does_not_keep_the_door_open(
    app: Flask, api: Api, own_key: str, end: str
) -> None:
    key = key_with("admin", name="root")
    table, name, value = ("clients", "name", "root") if end == "disabled_at" else ("api_keys", "id", key.split("_")[1])
    rows(
        f"UPDATE {table} SET {end} = clock_timestamp() + interval '1 minute' WHERE {name} = :value RETURNING 1",
        value=value,
    )
    assert_problem(api.call("DELETE", f"/clients/admin/keys/{own_key}"), 409)


def test_two_administrators_who_revoke_each_other_at_once_do_not_both_succeed(api: Api, own_key: str) -> None:
    other = key_with("admin", name="root").split("_")[1]

    def end(connection: Any, key_id: str) -> bool:
        with administration.administering(connection):
            return clients.revoke_key(connection, key_id)

    def second(_connection: Any) -> str:
        try:
            with transaction() as connection:
                end(connection, own_key)
        except Conflict as refused:
            return refused.code
        return "revoked"

    assert meanwhile(lambda connection: end(connection, other), second) == (True, "last_admin")
