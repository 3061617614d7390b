"""What names stand for; each beside a name that stands for nothing."""

from __future__ import annotations

import pytest

from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.names import PLAINTEXT, Names, Target

NAMES = Names("shop.internal", {"web": ("http", "tls"), "db": ("5432",), "job": ()})


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("*", ["web:http", "web:tls", "db:5432"]),
        ("web", ["web:http", "web:tls"]),
        ("web:tls", ["web:tls"]),
        ("db", ["db:5432"]),
        ("web:mesh-admin", ["web:mesh-admin"]),
        ("job:mesh-admin", ["job:mesh-admin"]),
    ],
)
def test_targets(text: str, ports: list[str]) -> None:
    assert [str(target) for target in NAMES.targets(text)] == ports


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wbe", r"^unknown service 'wbe' \(did you mean 'web'\?\)$"),
        ("bd", r"^unknown service 'bd' \(did you mean 'db'\?\)$"),
        ("job", "^service 'job' has no ports, so it cannot be called$"),
        ("wbe:mesh-admin", r"^unknown service 'wbe' \(did you mean 'web'\?\)$"),
        ("web:80", r"^service 'web' has no port '80' \(it has 'http', 'tls'\)$"),
        ("web:tsl", r"^service 'web' has no port 'tsl' \(did you mean 'tls'\?\)$"),
    ],
)
def test_no_targets(text: str, why: str) -> None:
    for meaning in (NAMES.targets, NAMES.target):
        with pytest.raises(ValueError, match=why):
            meaning(text)


def test_one_target() -> None:
    assert NAMES.target("db") == NAMES.target("db:5432") == Target("db", "5432")
    with pytest.raises(ValueError, match="'web' has several ports: say which of web:http, web:tls"):
        NAMES.target("web")
    with pytest.raises(ValueError, match="is not one port"):
        NAMES.target("*")


def test_targets_of_unreadable_services_are_none() -> None:
    names = Names(None, {"good": ("x",), "bad": None})
    assert names.targets("*") == (Target("good", "x"),)
    assert names.targets("bad:y") == ()
    assert names.target("bad:y") == Target("bad", "")


def test_identities() -> None:
    assert NAMES.identity("web") == SpiffeId("shop.internal", ("web",))
    assert NAMES.identity("spiffe://elsewhere/x/y") == SpiffeId("elsewhere", ("x", "y"))
    for text in ("wbe", "*", "spiffe://shop.internal/*"):
        with pytest.raises(ValueError, match=r"unknown service|is not of A-Z"):
            NAMES.identity(text)


def test_patterns() -> None:
    assert NAMES.pattern("web") == NAMES.pattern("spiffe://shop.internal/web") == ("web",)
    assert NAMES.pattern("spiffe://shop.internal/*") == ("*",)
    assert NAMES.pattern("spiffe://shop.internal/batch/**") == ("batch", "**")
    for text in ("wbe", "spiffe://shop.internal/wbe", "spiffe://elsewhere/web", "spiffe://shop.internal/we*"):
        with pytest.raises(ValueError, match=r"unknown service|of another trust domain|is no pattern"):
            NAMES.pattern(text)


def test_plaintext_is_a_caller_and_no_identity() -> None:
    assert NAMES.source("plaintext") is PLAINTEXT
    assert str(PLAINTEXT) == "plaintext"
    assert NAMES.source("web") == SpiffeId("shop.internal", ("web",))
    for text in ("plaintext", "spiffe://shop.internal/plaintext"):
        with pytest.raises(ValueError, match="unknown service 'plaintext'"):
            NAMES.pattern(text)


def test_people() -> None:
    names = Names("shop.internal", {"web": ()}, ("alice", "bob"))
    alice = SpiffeId("shop.internal", ("user", "alice"))
    assert names.identity("user/alice") == names.source("user/alice") == alice
    assert names.pattern("user/alice") == ("user", "alice")
    with pytest.raises(ValueError, match=r"^unknown person 'user/alcie' \(did you mean 'user/alice'\?\)$"):
        names.pattern("user/alcie")
    with pytest.raises(ValueError, match=r"^unknown person 'user/x': `people:` declares none of that name$"):
        names.identity("user/x")
    with pytest.raises(ValueError, match=r"^unknown service 'alice' \(the person of that name is 'user/alice'\)$"):
        names.identity("alice")
    with pytest.raises(ValueError, match=r"^unknown service 'user/alice'"):
        names.targets("user/alice")  # people are not called


def test_people_that_cannot_be_read_were_reported_already() -> None:
    assert Names("a", {"web": ()}, None).identity("user/x") == SpiffeId("a", ("user", "x"))
