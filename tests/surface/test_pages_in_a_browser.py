"""/docs and /redoc in a real browser: they show the API, say nothing on the console and ask nobody but this service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.programs import program
from tests.service.running import Running

PATIENCE_MS = 30_000
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """One page as it was shown, what it wrote to the console and whom it asked."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with this module: while it lives, its event loop counts as this thread's running one."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program("chromium"), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(PATIENCE_MS)
    visit = Visit(page)
    page.on("console", lambda message: visit.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: visit.said.append(f"error: {error}"))
    page.on("request", lambda request: visit.asked.append(request.url))
    yield visit
    page.close()


def check(visit: Visit, service: Running) -> None:
    # Redoc's sampler warns of an array behind allOf, whose made-up example may be wrong: no fault of the page
    said = [line for line in visit.said if not line.startswith("warning: OpenAPI Sampler: found allOf")]
    assert [line for line in said if line.startswith(("error", "warning"))] == []
    outside = [url for url in visit.asked if not url.startswith((service.url, "data:", "blob:"))]
    assert outside == []
    assert f"{service.url}/openapi.json" in visit.asked


def test_the_docs_show_every_operation_and_let_one_be_tried(surface: Running, visit: Visit) -> None:
    visit.page.goto(f"{surface.url}/docs")
    health = visit.page.locator(".opblock", has_text="What the service is").first
    health.locator(".opblock-summary-control").click()
    health.get_by_role("button", name="Try it out").click()
    health.get_by_role("button", name="Execute").click()
    visit.page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    paths = set(visit.page.locator(".opblock-summary-path").evaluate_all("all => all.map(one => one.dataset.path)"))
    assert paths == set(surface.ask("GET", "/openapi.json").json()["paths"])
    check(visit, surface)


def test_the_reference_shows_every_operation(surface: Running, visit: Visit) -> None:
    visit.page.goto(f"{surface.url}/redoc")
    visit.page.get_by_role("heading", name="Orchestrator").first.wait_for()
    document = surface.ask("GET", "/openapi.json").json()
    operations = [one for item in document["paths"].values() for name, one in item.items() if name in METHODS]
    text = visit.page.locator("body").inner_text()
    assert [one["summary"] for one in operations if one["summary"] not in text] == []
    check(visit, surface)


METHODS = {"get", "post", "put", "patch", "delete"}
