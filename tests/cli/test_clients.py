"""`orchestrator clients` on a database of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from models.kernel.administration import count_admin_keys
from models.kernel.clients import key_is_valid
from models.kernel.session import transaction
from orchestrator_cli.main import main


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["clients", *words])


def asked(*words: str) -> Any:
    """What a command prints as JSON."""
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def robot(database: str) -> str:
    """A client that may read and write."""
    asked("create", "robot", "--tenant", "lab")
    return "robot"


def test_a_client_is_made_shown_changed_and_listed(robot: str) -> None:
    made = asked("show", robot)
    assert (made["permissions"], made["tenant"], made["keys"]) == (["read", "write"], "lab", [])
    changed = asked("set", robot, "--may", "read", "--rate-limit", "5")
    assert (changed["permissions"], changed["rate_limit"], changed["tenant"]) == (["read"], 5, "lab")
    assert [client["name"] for client in asked("list")["clients"]] == [robot]
    assert robot in run("list").stdout


def test_a_key_is_printed_once_listed_without_its_secret_and_revoked(robot: str) -> None:
    made = run("key", robot).stdout.strip()
    assert key_is_valid(made)
    key_id, secret = made.split("_", 2)[1:]
    listed = run("keys", robot, "--json").stdout
    assert json.loads(listed)["keys"][0]["id"] == key_id
    assert secret not in listed + run("show", robot).stdout
    assert asked("revoke", key_id)["revoked_at"] is not None
    assert not key_is_valid(made)
    assert "was revoked before" in run("revoke", key_id).stdout


def test_a_rotated_key_outlives_the_new_one_s_birth_by_the_overlap_alone(robot: str) -> None:
    first, second = asked("key", robot), asked("key", robot)
    kept = asked("rotate", first["id"], "--overlap", "600")["key"]
    assert key_is_valid(first["key"])
    assert key_is_valid(kept)
    asked("rotate", second["id"], "--overlap", "0")
    assert not key_is_valid(second["key"])


def test_none_of_a_disabled_client_s_keys_is_valid_until_it_is_enabled(robot: str) -> None:
    made = asked("key", robot)["key"]
    assert asked("disable", robot)["disabled_at"] is not None
    assert not key_is_valid(made)
    assert asked("enable", robot)["disabled_at"] is None
    assert key_is_valid(made)


@pytest.fixture
def only_key(database: str) -> dict[str, str]:
    """The one key that can administer the service, which belongs to the client root."""
    asked("create", "root", "--may", "admin")
    key: dict[str, str] = asked("key", "root")
    return key


def ways_out(key_id: str) -> list[list[str]]:
    """Every command that takes the last administrator's key away."""
    return [
        ["disable", "root"],
        ["set", "root", "--may", "read"],
        ["revoke", key_id],
        ["rotate", key_id, "--overlap", "0", "--expires-in", "60"],
    ]


def can_administer() -> bool:
    with transaction() as connection:
        return bool(count_admin_keys(connection))


@pytest.mark.parametrize("way", range(4))
def test_the_last_administrator_is_shut_out_by_force_alone(only_key: dict[str, str], way: int) -> None:
    words = ways_out(only_key["id"])[way]
    refused = run(*words)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert "last such key" in refused.stderr
    assert "--may admin" in refused.stderr
    assert "--force" in refused.stderr
    assert json.loads(run(*words, "--json").stderr)["code"] == "last_admin"
    assert can_administer()
    asked(*words, "--force")
    assert not can_administer()


@pytest.mark.parametrize("way", range(4))
def test_an_administrator_goes_without_force_when_another_stays(only_key: dict[str, str], way: int) -> None:
    asked("create", "second", "--may", "admin")
    asked("key", "second")
    asked(*ways_out(only_key["id"])[way])
    assert can_administer()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["create"], 2),
        (["create", "x", "--may", "fly"], 2),
        (["create", "x", "--rate-limit", "-1"], 2),
        (["create", "a b"], 1),
        (["create", "robot"], 1),
        (["create", "x", "--tenant", ""], 1),
        (["create", "\udcff"], 1),
        (["show", "nobody"], 1),
        (["show", "\udcff"], 2),
        (["set", "nobody", "--may", "read"], 1),
        (["disable", "nobody"], 1),
        (["key", "nobody"], 1),
        (["key", "robot", "--expires-in", "0"], 2),
        (["keys", "nobody"], 1),
        (["rotate", "000000000000"], 1),
        (["rotate", "000000000000", "--overlap", "x"], 2),
        (["revoke", "000000000000"], 1),
        (["revoke"], 2),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_exit_code_and_no_traceback(
    robot: str, words: list[str], code: int
) -> None:
    answer = run(*words)
    assert answer.exit_code == code, answer.output
    assert isinstance(answer.exception, SystemExit)
    assert answer.stdout == ""
    assert [client["name"] for client in asked("list")["clients"]] == [robot]


def test_with_json_an_error_is_one_object_on_stderr(robot: str) -> None:
    answer = run("show", "nobody", "--json")
    assert answer.stdout == ""
    assert json.loads(answer.stderr)["code"] == "client_not_found"
