"""The running service, asked over HTTP as any client would."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from models.kernel.errors import InvalidSettings
from models.kernel.parsers import url as url_parser
from models.kernel.settings import load
from orchestrator_cli.addresses import START_IT, service_token, service_url
from orchestrator_cli.errors import ServiceRefused, ServiceUnreachable, WrongUsage
from orchestrator_cli.output import printing

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
NO_CONTENT, REFUSED, SERVER_ERROR = 204, 400, 500

NEXT_STEPS = {
    "unauthenticated": "give a valid key with --token or ORCHESTRATOR_TOKEN; `orchestrator clients key` makes one",
    "permission_missing": "`orchestrator clients set NAME --may ...` gives a client more permissions",
    "emergency_stop": "`orchestrator estop status` says why, `orchestrator estop release` ends it",
    "ticket_terminal": "--force runs it again",
    "ticket_executing": "`orchestrator tickets cancel` ends it",
    "ticket_not_found": "`orchestrator tickets list` shows those that exist",
    "cursor_expired": "leave --after away to watch from now on",
    "engine_not_configured": "`orchestrator engine config --accept FILE` gives the engine a configuration",
    "engine_stopped": "`orchestrator engine reset` and then `start` begin anew",
    "engine_running": "`orchestrator engine drain` lets it finish, `stop` also refuses events",
    "engine_init": "`orchestrator engine start` starts it",
    "engine_drained": "`orchestrator engine start` goes on",
    "engine_degraded": "`orchestrator engine status` says what it waits for; it goes on by itself",
    "run_not_found": "`orchestrator engine runs` shows those that exist",
    "run_id_ambiguous": "`orchestrator engine runs` shows them whole",
    "config_not_found": "`orchestrator engine config --accept FILE` gives the engine a configuration",
    "config_invalid": "`orchestrator engine config --check FILE` says the same without asking the service",
    "mark_not_found": "`orchestrator engine marks list` shows those that exist",
    "records_gone": "leave --at away to keep all that there still is",
}
BY_STATUS = {
    401: NEXT_STEPS["unauthenticated"],
    404: "is this the service that you meant? --url and ORCHESTRATOR_URL name another",
    429: "ask again a little later",
    503: "`orchestrator doctor` says what is not well",
}


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the running service as its first argument, with --url, --token and --json."""

    @functools.wraps(command)
    def run(*, url: str | None, token: str | None, **given: Any) -> Any:
        return command(Service.found(url, token), **given)

    told = click.option("--token", metavar="KEY", help="API key or JWT; ORCHESTRATOR_TOKEN, else the local admin's.")
    where = click.option("--url", metavar="URL", help="The service; ORCHESTRATOR_URL, else the local one.")
    return printing(where(told(run)))


class Service:
    """One service and the credential to ask it with."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    @classmethod
    def found(cls, url: str | None, token: str | None) -> Service:
        """Where the options, else the settings, else the local home say. Raises InvalidSettings, CannotStart."""
        chosen = load(os.environ)
        if url is not None:
            try:
                chosen = replace(chosen, service_url=url_parser("http", "https")(url))
            except ValueError as error:
                raise InvalidSettings(f"--url={url!r}: {error}") from None
        if token is not None:
            chosen = replace(chosen, service_token=token)
        return cls(service_url(chosen), service_token(chosen))

    def headers(self) -> dict[str, str]:
        if not self.token.isascii() or not self.token.isprintable():
            raise InvalidSettings("the token has characters that no credential has")
        return {"Authorization": f"Bearer {self.token}"}

    @functools.cached_property
    def client(self) -> httpx.Client:
        import httpx

        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        return httpx.Client(base_url=self.url, headers=self.headers(), timeout=timeout, trust_env=False)

    def get(self, path: str, **params: Any) -> Any:
        """A GET; parameters that are None are left out. Raises as `ask` does."""
        return self.ask("GET", path, params={name: value for name, value in params.items() if value is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return self.ask("POST", path, json={} if body is None else body, **options)

    def ask(self, method: str, path: str, *, answer_seconds: float = ANSWER_SECONDS, **options: Any) -> Any:
        """The answer's JSON.

        Raises ServiceRefused (4xx) or ServiceUnreachable (5xx, no answer in time, no JSON).
        """
        import httpx

        timeout = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        try:
            answer = self.client.request(method, path, timeout=timeout, **options)
        except httpx.HTTPError as error:
            raise self.silent(error) from None
        except (ValueError, httpx.InvalidURL) as error:
            raise WrongUsage(f"this cannot be sent: {error}") from None
        return content_of(answer, f"{method} {path}")

    def silent(self, error: Exception) -> ServiceUnreachable:
        reason = str(error) or type(error).__name__
        return ServiceUnreachable(
            f"the service at {self.url} does not answer: {reason}",
            next_step=f"{START_IT}, or name another with --url or ORCHESTRATOR_URL",
        )


def content_of(answer: httpx.Response, question: str) -> Any:
    """The JSON of an answer, None of an empty one; raises what it says when it is a problem."""
    if answer.status_code == NO_CONTENT:
        return None
    try:
        content = answer.json()
    except ValueError:
        what = f"{question} was answered with {answer.status_code} and no JSON"
        raise ServiceUnreachable(what, next_step=BY_STATUS[404]) from None
    if answer.status_code < REFUSED:
        return content
    problem = content if isinstance(content, dict) else {}
    raise failure(answer.status_code, problem)


def failure(status: int, problem: dict[str, Any]) -> ServiceRefused | ServiceUnreachable:
    """A problem object as the error that ends a command."""
    kind = ServiceUnreachable if status >= SERVER_ERROR else ServiceRefused
    code, detail = str(problem.get("code", "")), str(problem.get("detail") or f"status {status}")
    pointed = [f"{e.get('pointer')}: {e.get('detail')}" for e in problem.get("errors", []) if isinstance(e, dict)]
    missing = [line for line in pointed if line not in detail]
    known = NEXT_STEPS.get(code) or (BY_STATUS.get(status, "") if code in {"", "not_found"} or status != 404 else "")  # noqa: PLR2004
    return kind("; ".join([detail, *missing]), next_step=known, problem=problem)
