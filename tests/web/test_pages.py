"""/docs and /redoc work with no network: every file they name is served from here."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.web.service import Api

URL = re.compile(r"""(?:https?:)?//[\w.-]+""")


class Named(HTMLParser):
    """Every file or address that a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value or "" for name, value in attrs if name in {"href", "src", "action", "srcset", "data"}}


@pytest.mark.parametrize(("page", "files"), [("/docs", 3), ("/redoc", 2)])
def test_a_page_and_every_file_that_it_names_are_served_from_here(anonymous: Api, page: str, files: int) -> None:
    answer = anonymous.get(page)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert not URL.search(answer.text)
    named = Named()
    named.feed(answer.text)
    local = {name for name in named.found if not name.startswith("data:")}
    assert len(local) == files
    for name in local:
        assert name.startswith("/static/")
        served = anonymous.get(name)
        assert served.status_code == 200
        assert served.mimetype in {"text/javascript", "text/css"}
        assert "max-age" in served.headers["Cache-Control"]


@pytest.mark.parametrize("script", ["/static/docs.js", "/static/redoc.js"])
def test_what_starts_a_page_reads_our_document_and_names_no_other_host(anonymous: Api, script: str) -> None:
    text = anonymous.get(script).text
    assert '"/openapi.json"' in text
    assert not URL.search(text)


def test_the_validator_of_swagger_is_off(anonymous: Api) -> None:
    assert "validatorUrl: null" in anonymous.get("/static/docs.js").text


def test_no_file_but_the_pages_own_is_served(anonymous: Api) -> None:
    for name in ("docs.html", "swagger-ui.LICENSE", "nothing.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py"):
        assert anonymous.get(f"/static/{name}").status_code == 404, name


def test_a_file_that_the_browser_has_is_not_sent_again(anonymous: Api) -> None:
    first = anonymous.get("/static/docs.js")
    again = anonymous.get("/static/docs.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
