"""No path executes without a valid credential that holds `write`."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.kernel import clients, clock
from models.kernel.session import transaction
from orchestrator_web import auth
from orchestrator_web.app import create_app
from tests.conftest import forget
from tests.web.service import DRIVE, Api, assert_problem, counts, each, key_with, refusals, rows

SECRET = "a secret of more than thirty-two bytes"
PUBLIC = {"/", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json", "/metrics", "/static/<name>"}
FAR = 4_000_000_000
NEVER = 1_000_000_000


def routes(app: Flask) -> list[tuple[str, str, str]]:
    """(rule, method, path) of every route, HEAD and OPTIONS among the methods."""
    return [
        (rule.rule, method, re.sub(r"<[^>]+>", "tick-20200101-00000000", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods or ())
    ]


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "robot-user", "exp": FAR, **claims}, secret, algorithm=algorithm)


@pytest.fixture
def with_tokens(database: str, broker: str, environment: pytest.MonkeyPatch) -> Flask:
    """An application that accepts JWTs."""
    environment.setenv("JWT_SECRET_KEY", SECRET)
    forget()
    return create_app()


def test_every_route_but_the_public_ones_is_401_without_a_credential(app: Flask, anonymous: Api) -> None:
    before = counts()
    for rule, method, path in routes(app):
        answer = anonymous.call(method, path)
        if rule in PUBLIC:
            assert answer.status_code not in {401, 403}, (method, path)
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="orchestrator"'
            if method != "HEAD":
                assert assert_problem(answer, 401)["code"] == "credential_missing"
    assert counts() == before


def test_every_route_but_the_public_ones_is_403_with_a_credential_that_may_nothing(app: Flask) -> None:
    nobody = Api(app, key_with(name="nobody"))
    before = counts("ledger")
    for rule, method, path in routes(app):
        if rule not in PUBLIC:
            assert nobody.call(method, path).status_code == 403, (method, path)
    assert counts("ledger") == before
    assert {row["actor"] for row in refusals()} == {"nobody"}


def test_a_reader_may_read_and_may_not_act(app: Flask, reader: Api) -> None:
    before = counts("ledger")
    for rule, method, path in routes(app):
        if rule in PUBLIC:
            continue
        if method == "POST":
            assert assert_problem(reader.call(method, path), 403)["code"] == "permission_missing"
        elif method == "GET":
            view = next(r.endpoint for r in app.url_map.iter_rules() if r.rule == rule and "GET" in (r.methods or ()))
            wanted = {403} if auth.permission_of(app, view) == "admin" else {200, 404, 426}
            assert reader.call(method, path).status_code in wanted, path
    assert counts("ledger") == before


def test_write_alone_does_not_read_and_admin_does_everything(app: Flask) -> None:
    writer = Api(app, key_with("write", name="writer"))
    ticket_id = writer.create()["id"]
    assert_problem(writer.get(f"/ticket/{ticket_id}"), 403)
    admin = Api(app, key_with("admin", name="root"))
    assert admin.get(f"/ticket/{ticket_id}").status_code == 200
    assert admin.accept(ticket_id).status_code == 202


def test_an_authenticated_refusal_is_in_the_ledger_with_who_asked_for_what(app: Flask, reader: Api) -> None:
    assert_problem(reader.post("/ticket", json=DRIVE, headers={"X-Correlation-Id": "asked-1"}), 403)
    (row,) = refusals()
    assert {name: row[name] for name in ("actor", "reason", "correlation_id", "subject_kind", "subject_id")} == {
        "actor": "reader", "reason": "permission_missing", "correlation_id": "asked-1",
        "subject_kind": "request", "subject_id": "/ticket",
    }  # fmt: skip
    assert row["body"] == {"method": "POST", "path": "/ticket", "status": 403}


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "not_json"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "application/json", 422, "invalid"),
    ],
)
def test_an_execute_that_cannot_be_read_is_in_the_ledger_too(
    api: Api, body: bytes, kind: str, status: int, code: str
) -> None:
    assert_problem(api.post("/execute", data=body, content_type=kind), status)
    (row,) = refusals()
    assert (row["actor"], row["reason"], row["subject_id"]) == ("admin", code, "/execute")


def test_a_refused_act_on_a_ticket_is_in_that_ticket_s_history(api: Api) -> None:
    ticket_id = api.create()["id"]
    api.accept(ticket_id)
    assert_problem(api.post("/execute", json={"ticket_id": ticket_id}), 409)
    (row,) = refusals()
    assert (row["subject_kind"], row["subject_id"], row["reason"]) == ("ticket", ticket_id, "ticket_queued")


def test_an_anonymous_refusal_is_counted_and_not_in_the_ledger(anonymous: Api) -> None:
    def counted(code: str) -> float:
        line = re.search(
            rf'^orchestrator_unauthenticated_total{{code="{code}"}} (\S+)$',
            anonymous.get("/metrics").text,
            re.MULTILINE,
        )
        return float(line[1]) if line else 0.0

    before = counts()
    missing, invalid = counted("credential_missing"), counted("key_invalid")
    anonymous.post("/execute", json={"ticket_id": "x"})
    anonymous.post("/execute", json={"ticket_id": "x"}, headers={"X-API-Key": "orc_000000000000_" + "x" * 32})
    assert (counted("credential_missing"), counted("key_invalid")) == (missing + 1, invalid + 1)
    assert counts() == before


def test_an_api_key_is_taken_from_either_header(anonymous: Api, admin_key: str) -> None:
    for headers in ({"X-API-Key": admin_key}, {"Authorization": f"bearer  {admin_key} "}):
        assert anonymous.get("/tickets", headers=headers).status_code == 200


@each(
    "value",
    [
        "Basic YWRtaW46YWRtaW4=", "Bearer", "Bearer ", "Bearer x", "Bearer \x00", "Bearer é", "Bearer \xff\xfe",
        "Bearer orc_", "Bearer orc_000000000000_" + "x" * 32, "Bearer " + "x" * 9000, "Bearer a.b.c", "Bearer ..",
        "Bearer orc_' OR 1=1 --", "Digest x", "bearer", "Token x", " ", "Bearer null", "Bearer undefined",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsImV4cCI6NDAwMDAwMDAwMH0.",
    ],
)  # fmt: skip
def test_what_is_no_credential_is_401(with_tokens: Flask, admin_key: str, value: str) -> None:
    """Even beside a good API key: the Authorization header, once sent, is what counts."""
    caller = Api(with_tokens)
    assert_problem(caller.post("/ticket", json=DRIVE, headers={"Authorization": value}), 401)
    if value.strip():
        assert_problem(caller.get("/tickets", headers={"Authorization": value, "X-API-Key": admin_key}), 401)


def altered(key: str) -> list[str]:
    """The key with one character changed, one missing, one more."""
    changed = [key[:at] + ("0" if key[at] != "0" else "1") + key[at + 1 :] for at in range(len(key))]
    return [*changed, key[:-1], key + "0", key.upper(), key[4:], f"{key},{key}"]


def test_an_altered_key_is_401(anonymous: Api, admin_key: str) -> None:
    for key in altered(admin_key):
        assert_problem(anonymous.get("/tickets", headers={"X-API-Key": key}), 401)


def test_a_token_works_within_its_permissions(with_tokens: Flask) -> None:
    assert Api(with_tokens, token()).create()["status"] == "pending"
    reading = Api(with_tokens, token(permissions=["read"]))
    assert reading.get("/tickets").status_code == 200
    assert_problem(reading.post("/ticket", json=DRIVE), 403)
    assert rows("SELECT created_by FROM tickets") == [{"created_by": "robot-user"}]


def test_a_token_is_never_worth_more_than_its_client(with_tokens: Flask) -> None:
    key_with("read", name="robot-user")
    assert_problem(Api(with_tokens, token(permissions=["read", "write", "admin"])).post("/ticket", json=DRIVE), 403)


FORGED: list[tuple[str, str]] = [
    ("expired", token(exp=NEVER)),
    ("not yet valid", token(nbf=FAR)),
    ("signed by another", token("another secret of more than 32 bytes")),
    ("of another algorithm", token(SECRET + "!" * 40, "HS512")),
    ("unsigned", jwt.encode({"sub": "robot-user", "exp": FAR}, None, algorithm="none")),
    ("cut short", token()[:-2]),
    ("its signature taken off", token().rpartition(".")[0] + "."),
    ("without exp", jwt.encode({"sub": "robot-user"}, SECRET)),
    ("without sub", jwt.encode({"exp": FAR}, SECRET)),
    ("its name empty", token(sub="")),
    ("its name too long", token(sub="x" * 65)),
    ("its name with a NUL", token(sub="a\x00b")),
    ("its name half a character", token(sub="\ud800")),
    ("its exp a text", jwt.encode({"sub": "robot-user", "exp": "never"}, SECRET)),
    ("its exp infinite", jwt.encode({"sub": "robot-user", "exp": float("inf")}, SECRET)),
    ("its permissions a text", token(permissions="write")),
    ("its permissions an object", token(permissions={"write": True})),
    ("its permissions numbers", token(permissions=[1])),
]


@each("name, forged", FORGED)
def test_a_token_that_proves_nothing_is_401(with_tokens: Flask, name: str, forged: str) -> None:
    assert_problem(Api(with_tokens, forged).post("/ticket", json=DRIVE), 401)


def test_a_token_without_write_may_not_act_whatever_its_claims_say(with_tokens: Flask) -> None:
    for permissions in ([], ["read"], ["WRITE"], ["write "], ["execute", "*"]):
        assert_problem(Api(with_tokens, token(permissions=permissions)).post("/ticket", json=DRIVE), 403)


def test_tokens_are_refused_where_no_secret_is_set(app: Flask) -> None:
    assert_problem(Api(app, token()).post("/ticket", json=DRIVE), 401)


def revoke(key: str) -> None:
    with transaction() as connection:
        assert clients.revoke_key(connection, key.split("_")[1])


def expire(key: str) -> None:
    rows("UPDATE api_keys SET expires_at = clock_timestamp() WHERE id = :id RETURNING 1", id=key.split("_")[1])


def disable(_key: str) -> None:
    rows("UPDATE clients SET disabled_at = clock_timestamp() WHERE name = 'client-1' RETURNING 1")


def demote(_key: str) -> None:
    rows("UPDATE clients SET permissions = '{read}' WHERE name = 'client-1' RETURNING 1")


@pytest.mark.parametrize(("end", "status"), [(revoke, 401), (expire, 401), (disable, 401), (demote, 403)])
def test_a_revocation_holds_within_five_seconds(
    app: Flask, monkeypatch: pytest.MonkeyPatch, end: Callable[[str], None], status: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    key = key_with("read", "write")
    caller = Api(app, key)
    caller.create()
    now[0] += 2.0
    caller.create()
    end(key)
    now[0] += 5.0
    assert_problem(caller.post("/ticket", json=DRIVE), status)
    assert rows("SELECT count(*) AS n FROM tickets") == [{"n": 2}]


def test_a_refused_credential_is_looked_up_each_time_so_that_a_new_key_works_at_once(app: Flask) -> None:
    key = key_with("read")
    revoke(key)
    assert_problem(Api(app, key).get("/tickets"), 401)
    rows("UPDATE api_keys SET revoked_at = NULL RETURNING 1")
    assert Api(app, key).get("/tickets").status_code == 200


def test_the_cache_of_proved_credentials_is_bounded(app: Flask, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 2)
    for _ in range(5):
        assert Api(app, key_with("read")).get("/tickets").status_code == 200
        assert len(auth.cache) <= 2


@pytest.mark.parametrize(("allowed", "answers"), [("", (401, 401)), ("read", (200, 403)), ("read,write", (200, 201))])
def test_anonymous_callers_may_what_the_setting_says(
    database: str, broker: str, environment: pytest.MonkeyPatch, allowed: str, answers: tuple[int, int]
) -> None:
    environment.setenv("ANONYMOUS_PERMISSIONS", allowed)
    forget()
    caller = Api(create_app())
    assert (caller.get("/tickets").status_code, caller.post("/ticket", json=DRIVE).status_code) == answers
    assert_problem(caller.post("/ticket", json=DRIVE, headers={"X-API-Key": "wrong"}), 401)


def test_an_application_with_a_view_that_says_nothing_about_callers_does_not_start(app: Flask) -> None:
    late = Flask("late")
    late.add_url_rule("/open", view_func=lambda: "")
    with pytest.raises(ValueError, match="/open: say @requires"):
        auth.check_every_view(late)


HEADERS = {
    "X-HTTP-Method-Override": ["POST", "GET"], "X-Method-Override": ["POST"], "X-Original-URL": ["/", "/healthz"],
    "X-Rewrite-URL": ["/execute", "/"], "X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Prefix": ["/healthz"],
    "X-Forwarded-User": ["admin"], "X-Real-IP": ["::1"], "Host": ["localhost"], "Referer": ["/docs"],
    "X-API-Key": ["", "null", "orc_"], "Cookie": ["session=admin"], "Forwarded": ["for=127.0.0.1"],
    "Authorization": ["", "Bearer", "Basic Og=="], "Content-Type": ["application/json", "text/plain"],
    "X-Correlation-Id": ["admin"], "Prefer": ["respond-async"],
}  # fmt: skip
PATHS = [
    "/execute", "//execute", "/execute/", "/EXECUTE", "/Execute", "/./execute", "/healthz/../execute", "/execute;x=1",
    "/execute%00", "/%65xecute", "/execute?_method=POST", "/static/../execute", "/docs/..%2fexecute", "/execute%20",
    "///execute", "/execute#x", "/ticket", "//ticket", "/%74icket", "/ticket?permissions=write",
]  # fmt: skip


def test_no_header_path_or_method_gets_an_act_done_without_write(app: Flask, api: Api) -> None:
    ticket_id = api.create()["id"]
    credentials = [None, key_with("read", name="only-reads"), key_with(name="nothing")]
    before = counts("ledger")

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        path=st.sampled_from([*PATHS, f"/ticket/{ticket_id}/cancel", f"//ticket/{ticket_id}/cancel"]),
        method=st.sampled_from(["POST", "GET", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "post", "DELETE"]),
        headers=st.dictionaries(st.sampled_from(sorted(HEADERS)), st.integers(0, 2), max_size=4),
        credential=st.sampled_from(credentials),
    )
    def attempt(path: str, method: str, headers: dict[str, int], credential: str | None) -> None:
        chosen = {name: HEADERS[name][at % len(HEADERS[name])] for name, at in headers.items()}
        options = {"data": f'{{"ticket_id": "{ticket_id}", "command": "drive"}}', "content_type": "application/json"}
        if "Content-Type" in chosen:
            options["content_type"] = chosen.pop("Content-Type")
        answer = Api(app, credential).call(method, path, headers=chosen, **options)
        assert answer.status_code < 500
        assert counts("ledger") == before

    attempt()
    assert api.get(f"/ticket/{ticket_id}").get_json()["status"] == "pending"


def test_a_key_that_is_revoked_while_many_use_it_gets_nothing_done_after_five_seconds(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    key = key_with("read", "write")
    started, done = threading.Barrier(5), []

    def use() -> None:
        caller = Api(app, key)
        started.wait()
        done.extend(caller.post("/ticket", json=DRIVE).status_code for _ in range(5))

    threads = [threading.Thread(target=use, name=str(uuid.uuid4())) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    revoke(key)
    for thread in threads:
        thread.join()
    assert set(done) <= {201, 401}
    now[0] += 5.0
    made = rows("SELECT count(*) AS n FROM tickets")[0]["n"]
    assert made == done.count(201)
    assert_problem(Api(app, key).post("/ticket", json=DRIVE), 401)
    assert rows("SELECT count(*) AS n FROM tickets")[0]["n"] == made
