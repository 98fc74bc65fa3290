"""Whom the service takes a caller for: who stands at the other end, unless that is a proxy that is believed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from models.kernel.errors import InvalidSettings
from models.kernel.settings import load
from tests.conftest import forget
from tests.web.server import Message, own_logs, run

PROXY, CALLER, LIAR = "172.31.250.2", "198.51.100.7", "203.0.113.9"


@pytest.fixture
def addresses(database: str, broker: str, environment: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Answers the address and scheme that the application behind the settings sees of a request."""

    def ask(trusted: str, peer: str, *forwarded: str) -> tuple[str, str]:
        environment.setenv("ORCHESTRATOR_TRUSTED_PROXIES", trusted)
        forget()
        seen: list[tuple[str, str]] = []
        with own_logs():
            asgi: ModuleType = importlib.import_module("orchestrator_web.asgi")

            class Witness:
                async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                    seen.append((scope["client"][0], scope["scheme"]))

            environment.setattr(asgi, "Application", Witness)
            application = asgi.create_asgi()
        headers = [(b"x-forwarded-for", value.encode()) for value in forwarded] + [(b"x-forwarded-proto", b"https")]

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        async def said(_message: Message) -> None:
            raise AssertionError("nobody answers here")

        async def scenario() -> None:
            scope = {"type": "http", "path": "/", "scheme": "http", "client": (peer, 4711), "headers": headers}
            await application(scope, nothing, said)

        run(scenario)
        return seen[0]

    return ask


def test_a_proxy_that_is_believed_says_who_calls_and_how(addresses: Callable[..., tuple[str, str]]) -> None:
    assert addresses("172.31.250.0/24", PROXY, CALLER) == (CALLER, "https")
    assert addresses(f"10.0.0.1, {PROXY}", PROXY, CALLER) == (CALLER, "https")


def test_nobody_else_is_believed(addresses: Callable[..., tuple[str, str]]) -> None:
    assert addresses("", PROXY, CALLER) == (PROXY, "http")
    assert addresses("172.31.250.0/24", LIAR, CALLER) == (LIAR, "http")


def test_what_a_caller_writes_into_the_header_itself_is_not_believed(
    addresses: Callable[..., tuple[str, str]],
) -> None:
    assert addresses("172.31.250.0/24", PROXY, f"{LIAR}, {CALLER}") == (CALLER, "https")
    assert addresses("172.31.250.0/24", PROXY, LIAR, CALLER) == (CALLER, "https")


@pytest.mark.parametrize("text", ["*", "proxy", "10.0.0.0/33", "10.0.0.1/8", "::/129", "1.2.3"])
def test_what_is_no_address_and_no_network_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="ORCHESTRATOR_TRUSTED_PROXIES"):
        load({"ORCHESTRATOR_TRUSTED_PROXIES": text})
