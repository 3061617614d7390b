"""Who may call whom: every line of the Policy section of the attacks, each with its honest twin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sidecar.identity.spiffe import parse_spiffe_id
from sidecar.policy.decide import Decision, Kind, caller_name, callers, decide, name_in_rule, remedy, warnings
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import PLAINTEXT, Target

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)

SERVICES = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 80}}
  web-admin: {}
  a.b: {}
  aXb: {}
  api: {ports: {http: 80, metrics: 90}}
  db: {ports: 5432}
"""


def mesh(*rules: str) -> Mesh:
    policy = "".join(f"  - {rule}\n" for rule in rules) or "  []\n"
    return parse_mesh(f"{SERVICES}policy:\n{policy}", "mesh.yaml")


def asked(among: Mesh, source: str, target: str, now: datetime = NOW) -> Decision:
    service, _, port = target.partition(":")
    return decide(among, parse_spiffe_id(f"spiffe://{source}"), service, port, now)


def test_of_rules_with_limits_each_is_asked_for_room_up_to_one_without() -> None:
    few, more, all_, last = (
        f"{{name: {name}, from: web, to: db, {limit}}}"
        for name, limit in (("a", "connections: 1"), ("b", "connections: 2"), ("c", ""), ("d", "connections: 4"))
    )

    def limits(*rules: str) -> tuple[tuple[str, int | None], ...]:
        return asked(mesh(*rules), "shop.internal/web", "db:5432").limits

    assert limits(more, few) == (("a", 1), ("b", 2))
    assert limits(last, all_, few) == (("a", 1), ("c", None))
    assert limits(all_, last) == ()
    assert limits(few, "{from: web, to: db, action: deny}") == ()
    dry = "{name: b, from: web, to: db, mode: dry-run, connections: 7}"
    assert limits(dry, few) == (("a", 1),)


@pytest.mark.parametrize(
    ("rule", "source", "target", "allowed"),
    [
        # The twin, and callers not named
        ("{from: web, to: 'api:http'}", "shop.internal/web", "api:http", True),
        ("{from: web, to: 'api:http'}", "shop.internal/db", "api:http", False),
        # Another port, another service
        ("{from: web, to: 'api:http'}", "shop.internal/web", "api:metrics", False),
        ("{from: web, to: 'api:http'}", "shop.internal/web", "web:http", False),
        ("{from: web, to: 'api:http'}", "shop.internal/web", "api:", False),
        ("{from: web, to: 'api:http'}", "shop.internal/web", "api:HTTP", False),
        ("{from: web, to: api}", "shop.internal/web", "api:metrics", True),
        ("{from: web, to: '*'}", "shop.internal/web", "db:5432", True),
        ("{from: web, to: '*'}", "shop.internal/web", "web:http", True),
        ("{from: web, to: '*'}", "shop.internal/web", "web:admin", False),
        ("{from: web, to: '*'}", "shop.internal/web", "*:*", False),
        # What every sidecar answers for itself is meant in full, or not at all
        ("{from: web, to: 'api:mesh-admin'}", "shop.internal/web", "api:mesh-admin", True),
        ("{from: web, to: 'a.b:mesh-admin'}", "shop.internal/web", "a.b:mesh-admin", True),
        ("{from: '*', to: 'api:mesh-admin'}", "shop.internal/web", "api:mesh-admin", True),
        ("{from: web, to: api}", "shop.internal/web", "api:mesh-admin", False),
        ("{from: web, to: '*'}", "shop.internal/web", "api:mesh-admin", False),
        ("{from: '*', to: '*'}", "shop.internal/web", "api:mesh-admin", False),
        ("{from: web, to: 'db:mesh-admin'}", "shop.internal/web", "api:mesh-admin", False),
        ("{from: web, to: 'api:mesh-admin'}", "shop.internal/web", "api:http", False),
        # The direction
        ("{from: web, to: api}", "shop.internal/api", "web:http", False),
        # web against web-admin: prefixes and suffixes
        ("{from: web, to: api}", "shop.internal/web-admin", "api:http", False),
        ("{from: web-admin, to: api}", "shop.internal/web-admin", "api:http", True),
        ("{from: web-admin, to: api}", "shop.internal/web", "api:http", False),
        ("{from: web, to: api}", "shop.internal/we", "api:http", False),
        ("{from: web, to: api}", "shop.internal/xweb", "api:http", False),
        ("{from: web, to: api}", "shop.internal/web/admin", "api:http", False),
        ("{from: web, to: api}", "shop.internal/admin/web", "api:http", False),
        # A dot is no wildcard
        ("{from: a.b, to: api}", "shop.internal/a.b", "api:http", True),
        ("{from: a.b, to: api}", "shop.internal/aXb", "api:http", False),
        ("{from: 'spiffe://shop.internal/a.b/x', to: api}", "shop.internal/aXb/x", "api:http", False),
        ("{from: 'spiffe://shop.internal/a.b/x', to: api}", "shop.internal/a.b/x", "api:http", True),
        # Case
        ("{from: web, to: api}", "shop.internal/Web", "api:http", False),
        # Another trust domain
        ("{from: web, to: api}", "other.internal/web", "api:http", False),
        ("{from: '*', to: api}", "other.internal/web", "api:http", False),
        ("{from: 'spiffe://shop.internal/**', to: api}", "other.internal/web", "api:http", False),
        ("{from: 'spiffe://shop.internal/**', to: api}", "shop-internal/web", "api:http", False),
        ("{from: 'spiffe://shop.internal/**', to: api}", "shop.internal.evil/web", "api:http", False),
        # "*" is the declared services, and not whoever has a certificate
        ("{from: '*', to: api}", "shop.internal/db", "api:http", True),
        ("{from: '*', to: api}", "shop.internal/undeclared", "api:http", False),
        ("{from: '*', to: api}", "shop.internal/web/x", "api:http", False),
        # Patterns
        ("{from: 'spiffe://shop.internal/*', to: api}", "shop.internal/undeclared", "api:http", True),
        ("{from: 'spiffe://shop.internal/*', to: api}", "shop.internal/a/b", "api:http", False),
        ("{from: 'spiffe://shop.internal/batch/*', to: api}", "shop.internal/batch/nightly", "api:http", True),
        ("{from: 'spiffe://shop.internal/batch/*', to: api}", "shop.internal/batch", "api:http", False),
        ("{from: 'spiffe://shop.internal/batch/**', to: api}", "shop.internal/batch", "api:http", True),
        ("{from: 'spiffe://shop.internal/batch/**', to: api}", "shop.internal/batch/a/b", "api:http", True),
        ("{from: 'spiffe://shop.internal/batch/**', to: api}", "shop.internal/batches/a", "api:http", False),
        # A dry run is never applied
        ("{from: web, to: api, mode: dry-run}", "shop.internal/web", "api:http", False),
    ],
)
def test_decide(rule: str, source: str, target: str, *, allowed: bool) -> None:
    assert asked(mesh(rule), source, target).allowed is allowed


@pytest.mark.parametrize(
    "text", ["spiffe://shop.internal/web/", "spiffe://shop.internal/web//x", "spiffe://shop.internal/%77eb"]
)
def test_what_is_no_identity_is_never_asked_about(text: str) -> None:
    with pytest.raises(ValueError, match="path segment"):
        parse_spiffe_id(text)


def test_empty_policy_denies() -> None:
    decision = asked(mesh(), "shop.internal/web", "api:http")
    assert decision == Decision(Kind.NO_RULE, "web", Target("api", "http"), "no rule allows it")
    assert decision.why == "web may not call api:http: no rule allows it"
    assert decision.predicate == "may not call api:http: no rule allows it"


@pytest.mark.parametrize(
    ("source", "target"),
    [("web", "api:http"), ("web", "db:5432"), ("a.b", "api:metrics"), ("jobs/nightly", "api:http")],
)
@pytest.mark.parametrize("rules", [(), ("{from: web, to: '*', until: 2026-05-01}",)], ids=["no rule", "ran out"])
def test_a_refusal_ends_with_the_rule_that_allows_the_call(source: str, target: str, rules: tuple[str, ...]) -> None:
    before, caller = mesh(*rules), f"shop.internal/{source}"
    denied = asked(before, caller, target)
    end = remedy(before, parse_spiffe_id(f"spiffe://{caller}"), denied)
    told, _, rule = end.partition(" in mesh.yaml: - ")
    assert (denied.allowed, told) == (False, "; to allow it, add to `policy:`")
    assert asked(mesh(*rules, rule), caller, target).allowed


@pytest.mark.parametrize(
    ("caller", "target"),
    [("shop.internal/web", "api:nope"), ("shop.internal/web", "wbe:http"), ("other.internal/web", "api:http"),
     ("shop.internal/nobody", "api:http")],
)  # fmt: skip
def test_where_no_rule_alone_would_none_is_told(caller: str, target: str) -> None:
    denied = asked(mesh(), caller, target)
    assert (denied.allowed, remedy(mesh(), parse_spiffe_id(f"spiffe://{caller}"), denied)) == (False, "")


@pytest.mark.parametrize(
    ("caller", "named"),
    [
        ("shop.internal/a.b", '"a.b"'),
        ("shop.internal/jobs/nightly", '"spiffe://shop.internal/jobs/nightly"'),
        ("shop.internal/nobody", None),
        ("other.internal/web", None),
        ("other.internal/jobs/nightly", None),
    ],
)
def test_how_a_rule_names_a_caller(caller: str, named: str | None) -> None:
    assert name_in_rule(mesh(), parse_spiffe_id(f"spiffe://{caller}")) == named


def test_nor_where_a_rule_denies() -> None:
    shut = mesh("{from: web, to: db, action: deny}")
    end = remedy(shut, parse_spiffe_id("spiffe://shop.internal/web"), asked(shut, "shop.internal/web", "db:5432"))
    assert end == "; deny beats allow, so only without that rule can another one allow it"


@pytest.mark.parametrize("order", [1, -1])
def test_deny_beats_allow_in_any_order(order: int) -> None:
    rules = ["{name: open, from: '*', to: '*'}", "{name: shut, from: web, to: db, action: deny}"][::order]
    denied = asked(mesh(*rules), "shop.internal/web", "db:5432")
    line = 11 if order == 1 else 10
    assert (denied.kind, denied.rule, denied.line) == (Kind.DENIED, "shut", line)
    assert denied.why == f"web may not call db:5432: rule 'shut' (mesh.yaml:{line}) denies it"
    allowed = asked(mesh(*rules), "shop.internal/api", "db:5432")
    assert (allowed.kind, allowed.rule, allowed.line) == (Kind.ALLOWED, "open", 21 - line)
    assert allowed.why == f"api may call db:5432: rule 'open' (mesh.yaml:{21 - line}) allows it"


@pytest.mark.parametrize("order", [1, -1])
def test_of_rules_that_say_the_same_the_first_by_name_is_named(order: int) -> None:
    rules = ["{name: b, from: web, to: db}", "{name: a, from: '*', to: db}"][::order]
    assert asked(mesh(*rules), "shop.internal/web", "db:5432").rule == "a"


class TestUntil:
    MESH = mesh("{name: soon-over, from: web, to: db, until: 2027-01-31}")

    @pytest.mark.parametrize(
        ("now", "allowed"),
        [
            (datetime(2027, 1, 30, tzinfo=UTC), True),
            (datetime(2027, 1, 31, tzinfo=UTC), True),
            (datetime(2027, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), True),
            (datetime(2027, 2, 1, tzinfo=UTC), False),
            (datetime(2027, 2, 1, 0, 0, 1, tzinfo=UTC), False),
            # It is UTC's day that counts, not the clock's on the wall
            (datetime(2027, 2, 1, 0, 59, 59, tzinfo=timezone(timedelta(hours=1))), True),
            (datetime(2027, 2, 1, 1, 0, 0, tzinfo=timezone(timedelta(hours=1))), False),
            (datetime(2027, 1, 31, 19, 0, 0, tzinfo=timezone(timedelta(hours=-5))), False),
        ],
    )
    def test_to_the_second(self, now: datetime, *, allowed: bool) -> None:
        assert asked(self.MESH, "shop.internal/web", "db:5432", now).allowed is allowed

    def test_says_that_it_ran_out(self) -> None:
        over = asked(self.MESH, "shop.internal/web", "db:5432", datetime(2028, 1, 1, tzinfo=UTC))
        assert (over.kind, over.rule, over.line) == (Kind.RAN_OUT, None, None)
        assert over.why == (
            "web may not call db:5432: rule 'soon-over' (mesh.yaml:10) allowed it until 2027-01-31 and ran out;"
            " no other rule does"
        )

    def test_one_about_another_call_is_not_quoted(self) -> None:
        over = mesh("{from: web, to: db, until: 2020-01-01}", "{from: db, to: api, until: 2020-01-01}")
        assert asked(over, "shop.internal/web", "api:http").kind is Kind.NO_RULE

    def test_another_rule_still_holds(self) -> None:
        both = mesh("{name: a, from: web, to: db, until: 2027-01-31}", "{name: b, from: web, to: db}")
        assert asked(both, "shop.internal/web", "db:5432", datetime(2028, 1, 1, tzinfo=UTC)).rule == "b"

    def test_the_last_day_of_all(self) -> None:
        forever = mesh("{name: a, from: web, to: db, until: 9999-12-31}")
        assert asked(forever, "shop.internal/web", "db:5432", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)).allowed

    def test_a_time_of_no_zone_decides_nothing(self) -> None:
        naive = datetime(2027, 1, 1)
        with pytest.raises(ValueError, match="time zone"):
            asked(self.MESH, "shop.internal/web", "db:5432", naive)
        with pytest.raises(ValueError, match="time zone"):
            self.MESH.rules[0].ran_out(naive)

    def test_warned_of(self) -> None:
        assert warnings(self.MESH, NOW) == []
        assert warnings(self.MESH, datetime(2028, 1, 1, tzinfo=UTC)) == [
            "mesh.yaml:10: rule 'soon-over' held until 2027-01-31 and has no effect now"
        ]


class TestDryRun:
    def test_is_told_and_not_applied(self) -> None:
        trial = mesh(
            "{name: z-try, from: web, to: api, mode: dry-run}",
            "{name: a-try, from: web, to: '*', action: deny, mode: dry-run}",
            "{name: real, from: web, to: 'api:http'}",
            "{name: over, from: web, to: api, mode: dry-run, until: 2020-01-01}",
        )
        told = ("a-try would deny", "z-try would allow")
        allowed, denied = (asked(trial, "shop.internal/web", f"api:{port}") for port in ("http", "metrics"))
        assert (allowed.allowed, allowed.rule, allowed.dry_run) == (True, "real", told)
        assert (denied.allowed, denied.rule, denied.dry_run) == (False, None, told)
        assert asked(trial, "shop.internal/db", "api:http").dry_run == ()

    def test_one_that_ran_out_allowed_nothing(self) -> None:
        trial = mesh("{from: web, to: api, mode: dry-run, until: 2020-01-01}")
        assert asked(trial, "shop.internal/web", "api:http").kind is Kind.NO_RULE


@pytest.mark.parametrize(
    ("source", "target", "kind", "why"),
    [
        (
            "other/web",
            "api:http",
            Kind.OTHER_TRUST_DOMAIN,
            "spiffe://other/web may not call api:http: it is of another trust domain than shop.internal",
        ),
        (
            "shop.internal/batch/x",
            "api:http",
            Kind.NO_RULE,
            "spiffe://shop.internal/batch/x may not call api:http: no rule allows it",
        ),
        (
            "shop.internal/wbe",
            "api:http",
            Kind.NO_RULE,
            "spiffe://shop.internal/wbe may not call api:http: no rule allows it",
        ),
        (
            "shop.internal/web",
            "api:mesh-admin",
            Kind.NO_RULE,
            "web may not call api:mesh-admin: no rule allows it",
        ),
        (
            "shop.internal/web",
            "apj:mesh-admin",
            Kind.UNKNOWN_SERVICE,
            "web may not call apj:mesh-admin: mesh.yaml has no service of that name",
        ),
        (
            "shop.internal/web",
            "apj:http",
            Kind.UNKNOWN_SERVICE,
            "web may not call apj:http: mesh.yaml has no service of that name",
        ),
        (
            "shop.internal/web",
            "api:htp",
            Kind.UNKNOWN_PORT,
            "web may not call api:htp: the service has no port of that name",
        ),
    ],
)
def test_why_not(source: str, target: str, kind: Kind, why: str) -> None:
    decision = asked(mesh("{from: web, to: 'web:http'}"), source, target)
    assert (decision.kind, decision.rule, decision.line, decision.why) == (kind, None, None, why)


def test_only_one_kind_of_decision_lets_anybody_in() -> None:
    allowing = {kind for kind in Kind if Decision(kind, "web", Target("api", "http"), "because").allowed}
    assert allowing == {Kind.ALLOWED}


BATCH = "spiffe://shop.internal/batch/*"
DEEP = "spiffe://shop.internal/batch/**"
DEEPER = "spiffe://shop.internal/batch/x/**"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["{from: web, to: 'api:http'}"], ["web"]),
        (["{from: [web, db], to: 'api:http'}", "{from: db, to: api, action: deny}"], ["web"]),
        (["{from: web, to: 'api:metrics'}"], []),
        (["{from: web, to: api, mode: dry-run}"], []),
        (["{from: web, to: api, until: 2020-01-01}"], []),
        # A pattern, by rules that are not in force, of another action or about another port
        ([f"{{from: '{BATCH}', to: api}}"], [BATCH]),
        ([f"{{from: '{BATCH}', to: api, until: 2026-06-01}}"], [BATCH]),
        ([f"{{from: '{BATCH}', to: api, until: 2026-05-31}}"], []),
        ([f"{{from: '{BATCH}', to: api, mode: dry-run}}"], []),
        ([f"{{from: '{BATCH}', to: api, action: deny}}"], []),
        ([f"{{from: '{BATCH}', to: db}}"], []),
        # A deny rule for all that the pattern matches, and for a part of it
        ([f"{{from: '{BATCH}', to: api}}", f"{{from: '{BATCH}', to: api, action: deny}}"], []),
        ([f"{{from: '{BATCH}', to: api}}", "{from: 'spiffe://shop.internal/**', to: '*', action: deny}"], []),
        ([f"{{from: '{BATCH}', to: api}}", "{from: 'spiffe://shop.internal/*/*', to: '*', action: deny}"], []),
        ([f"{{from: '{BATCH}', to: api}}", "{from: 'spiffe://shop.internal/batch/x', to: api, action: deny}"], [BATCH]),
        ([f"{{from: '{BATCH}', to: api}}", f"{{from: '{BATCH}', to: 'api:metrics', action: deny}}"], [BATCH]),
        ([f"{{from: '{BATCH}', to: api}}", f"{{from: '{BATCH}', to: api, action: deny, mode: dry-run}}"], [BATCH]),
        # `**` is any number of segments: some of them are left
        ([f"{{from: '{DEEP}', to: api}}", f"{{from: '{BATCH}', to: api, action: deny}}"], [DEEP]),
        ([f"{{from: '{DEEP}', to: api}}", f"{{from: '{BATCH}/**', to: api, action: deny}}"], [DEEP]),
        (
            [
                f"{{from: '{DEEPER}', to: api}}",
                "{from: ['spiffe://shop.internal/*/*/*/**', 'spiffe://shop.internal/batch/x'], to: api, action: deny}",
            ],
            [],
        ),
        # One identity that is no service
        (["{from: 'spiffe://shop.internal/batch/x', to: api}"], ["spiffe://shop.internal/batch/x"]),
        (
            [
                "{from: 'spiffe://shop.internal/batch/x', to: api}",
                "{from: 'spiffe://shop.internal/batch/x', to: api, action: deny}",
            ],
            [],
        ),
        (["{from: 'spiffe://shop.internal/web', to: api}"], ["web"]),
        # A rule about another port names an identity that a pattern allows
        ([f"{{from: '{BATCH}', to: api}}", "{from: 'spiffe://shop.internal/batch/x', to: db}"], [BATCH]),
    ],
)
def test_callers(rules: list[str], expected: list[str]) -> None:
    named = [f"{{name: r{number}, {rule[1:]}" for number, rule in enumerate(rules)]
    assert callers(mesh(*named), "api", "http", NOW) == expected


def test_a_peer_that_is_allowed_and_denied_is_no_caller() -> None:
    allowed = "{from: web, to: \x27api:http\x27}"
    assert callers(mesh(allowed), "api", "http", NOW) == ["web"]
    assert (
        callers(mesh(allowed, "{from: web, to: \x27api:http\x27, action: deny, name: not web}"), "api", "http", NOW)
        == []
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("spiffe://shop.internal/web", "web"),
        ("spiffe://evil.internal/web", "spiffe://evil.internal/web"),
        ("spiffe://shop.internal/nobody", "spiffe://shop.internal/nobody"),
    ],
)
def test_only_a_service_of_this_mesh_is_called_by_its_name(source: str, name: str) -> None:
    assert caller_name(mesh(), parse_spiffe_id(source)) == name


class TestPlaintext:
    EVERY = (
        "{from: '*', to: '*'}",
        "{from: 'spiffe://shop.internal/**', to: '*'}",
        "{from: 'spiffe://shop.internal/*', to: '*'}",
        "{from: [web, api, db], to: '*'}",
    )

    @staticmethod
    def asked(among: Mesh, now: datetime = NOW) -> Decision:
        return decide(among, PLAINTEXT, "db", "5432", now)

    def test_a_rule_that_names_it_lets_it_in(self) -> None:
        decision = self.asked(mesh("{from: plaintext, to: db}"))
        assert (decision.allowed, decision.rule) == (True, "plaintext->db")
        assert decision.why == "plaintext may call db:5432: rule 'plaintext->db' (mesh.yaml:10) allows it"
        assert self.asked(mesh("{from: [web, plaintext], to: '*'}")).allowed
        assert not decide(mesh("{from: plaintext, to: db}"), PLAINTEXT, "api", "http", NOW).allowed

    def test_no_other_word_includes_it(self) -> None:
        decision = self.asked(mesh(*self.EVERY))
        assert decision.kind is Kind.NO_RULE
        assert remedy(mesh(), PLAINTEXT, decision) == (
            '; to allow it, add to `policy:` in mesh.yaml: - {from: [plaintext], to: ["db:5432"]}'
        )

    def test_its_rule_lets_in_nobody_else(self) -> None:
        among = mesh("{from: plaintext, to: '*'}")
        for caller in ("shop.internal/web", "shop.internal/plaintext", "elsewhere/plaintext"):
            assert not asked(among, caller, "db:5432").allowed
        assert asked(mesh("{from: [plaintext, web], to: '*'}"), "shop.internal/web", "db:5432").allowed

    def test_deny_and_the_end_hold_for_it(self) -> None:
        allow = "{from: plaintext, to: db, until: 2026-06-01}"
        assert self.asked(mesh(allow)).allowed
        assert self.asked(mesh(allow), NOW + timedelta(days=1)).kind is Kind.RAN_OUT
        assert self.asked(mesh(allow, "{name: no, from: plaintext, to: db, action: deny}")).kind is Kind.DENIED
        assert self.asked(mesh(allow, "{name: no, from: '*', to: db, action: deny}")).allowed  # `*`: declared services

    def test_who_may_call(self) -> None:
        among = mesh("{from: [web, plaintext], to: db}", "{from: '*', to: 'api:http'}")
        assert callers(among, "db", "5432", NOW) == ["web", "plaintext"]
        assert "plaintext" not in callers(among, "api", "http", NOW)
        assert caller_name(among, PLAINTEXT) == "plaintext"
        # An identity of that name, which a CA of one's own could issue, is another caller.
        assert (
            caller_name(among, parse_spiffe_id("spiffe://shop.internal/plaintext"))
            == "spiffe://shop.internal/plaintext"
        )


PEOPLE = f"{SERVICES}people: [alice, bob]\n"


def test_a_person_is_let_in_by_a_rule_with_that_name_alone() -> None:
    ours = parse_mesh(
        f"{PEOPLE}policy:\n  - {{from: user/alice, to: db}}\n  - {{from: '*', to: [db, 'api:http']}}\n", "m"
    )
    assert asked(ours, "shop.internal/user/alice", "db:5432").why == (
        "user/alice may call db:5432: rule 'user/alice->db' (m:11) allows it"
    )
    for caller, target in (
        ("user/alice", "api:http"),
        ("user/bob", "db:5432"),
        ("user", "db:5432"),
        ("alice", "db:5432"),
    ):
        assert not asked(ours, f"shop.internal/{caller}", target).allowed, caller
    assert not asked(ours, "other/user/alice", "db:5432").allowed
    assert callers(ours, "db", "5432", NOW) == ["web", "web-admin", "a.b", "aXb", "api", "db", "user/alice"]
    denied = parse_mesh(f"{PEOPLE}policy:\n  - {{from: ['spiffe://shop.internal/user/*'], to: db}}\n"
                        "  - {from: user/bob, to: db, action: deny}\n", "m")  # fmt: skip
    assert asked(denied, "shop.internal/user/alice", "db:5432").allowed
    assert not asked(denied, "shop.internal/user/bob", "db:5432").allowed
    assert callers(denied, "db", "5432", NOW) == ["user/alice", "spiffe://shop.internal/user/*"]


def test_how_people_are_named() -> None:
    ours = parse_mesh(PEOPLE, "m")
    alice, carol, other = (
        parse_spiffe_id(f"spiffe://{text}")
        for text in ("shop.internal/user/alice", "shop.internal/user/carol", "x/user/bob")
    )
    assert [caller_name(ours, one) for one in (alice, carol, other)] == ["user/alice", str(carol), str(other)]
    assert [name_in_rule(ours, one) for one in (alice, carol, other)] == ['"user/alice"', None, None]
    denied = decide(ours, alice, "db", "5432", NOW)
    assert (
        remedy(ours, alice, denied) == '; to allow it, add to `policy:` in m: - {from: ["user/alice"], to: ["db:5432"]}'
    )
    assert remedy(ours, carol, decide(ours, carol, "db", "5432", NOW)) == (
        "; only a person that m declares in `people:` can have a rule"
    )
