"""The report as a page: all in one file, nothing fetched, nothing that a peer wrote is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from sidecar.verify.judgement import Status
from sidecar.verify.page import as_html
from tests.unit.verify.test_report import EVIL, report


class Tags(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_it_says_what_was_tried_seen_and_not_covered() -> None:
    page = as_html(report(Status.OK, Status.FAILED, Status.NOT_TRIED))
    for text in (
        "NOT PROVED",
        "seen it",
        "called it",
        "not seen it",
        "spiffe://d/api",
        '<td class="untried">not tried',
    ):
        assert text in page
    assert '<p class="result ok">' in as_html(report(Status.OK))


@pytest.mark.parametrize("text", [EVIL, '"><img src=x onerror=alert(1)>', "</td></table><script src=//evil.example>"])
def test_what_peers_wrote_is_text(text: str) -> None:
    one = report(Status.OK, Status.FAILED, text=text)
    one.mesh = text
    assert Tags(as_html(one)).names == Tags(as_html(report(Status.OK, Status.FAILED))).names


def test_it_asks_nobody_for_anything() -> None:
    page = Tags(as_html(report(Status.OK)))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.names)
    assert not {name for name, _ in page.attributes} & {"src", "href", "action", "style"}
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in (value or ""))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"url\(|@import|https?:", as_html(report(Status.OK)))
