"""The operator's token in the home, as each `up` finds or makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.kernel.clients import issue_key, key_is_valid, list_keys, revoke_key, set_enabled
from models.kernel.session import transaction
from orchestrator_cli.admin import ensure_token
from orchestrator_cli.home import Home


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    made = Home.at(tmp_path / "home")
    made.prepare()
    return made


def token(home: Home) -> str:
    return home.token.read_text().strip()


def test_a_token_is_issued_once_and_kept_while_it_is_valid(home: Home) -> None:
    assert ensure_token(home) == "issued"
    first = token(home)
    assert key_is_valid(first)
    assert ensure_token(home) == "kept"
    assert token(home) == first
    with transaction() as connection:
        revoke_key(connection, first.split("_")[1])
    assert ensure_token(home) == "issued"
    assert key_is_valid(token(home))


def test_a_disabled_administrator_is_enabled_again_in_plain_sight(home: Home) -> None:
    ensure_token(home)
    with transaction() as connection:
        set_enabled(connection, "admin", False)
    said = ensure_token(home)
    assert "disabled" in said
    assert "enabled" in said
    assert key_is_valid(token(home))


def test_no_key_from_before_the_disabling_opens_anything_again(home: Home) -> None:
    ensure_token(home)
    first = token(home)
    with transaction() as other:
        leaked = issue_key(other, "admin")
        set_enabled(other, "admin", False)
    ensure_token(home)
    assert not key_is_valid(first)
    assert not key_is_valid(leaked)
    with transaction() as connection:
        live = [key["id"] for key in list_keys(connection, "admin") if key["revoked_at"] is None]
    assert live == [token(home).split("_")[1]]
