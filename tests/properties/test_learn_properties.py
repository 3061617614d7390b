"""Invariant: after learning, every call that may be learned is allowed once the rule that it replaces is gone, nothing else
is that was not before, every byte of the file is still there, and learning again changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.spiffe import SpiffeId
from sidecar.learn.merge import commented_out, merged
from sidecar.learn.rules import Evidence, learn
from sidecar.learn.seen import Call, Seen
from sidecar.policy.decide import decide
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import Target
from tests.unit.learn.lines import DOMAIN, inbound, outbound

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AFTER = datetime(2026, 7, 1, tzinfo=UTC)
HEAD = """\
trust_domain: shop.internal
services: {a: {ports: {x: 1, y: 2}}, b: {ports: 3}, c: {}, no: {ports: {x: 4}}}
policy:
  - {name: observe, from: "*", to: "*", until: 2026-06-05}
"""
NAMES = ["a", "b", "c", "no"]
TARGETS = [Target("a", "x"), Target("a", "y"), Target("b", "3"), Target("no", "x")]
OTHERS = ["batch/one", "mesh/ca", "gone"]

rules = st.lists(
    st.tuples(
        st.sampled_from([*NAMES, '"*"', '"spiffe://shop.internal/batch/*"']),
        st.sampled_from(["a", '"a:x"', "b", '"*"', '"no:x"']),
        st.sampled_from(["", ", action: deny", ", mode: dry-run", ", until: 2026-05-01", ", until: 2027-01-01"]),
    ),
    max_size=4,
)
lines = st.lists(
    st.builds(
        lambda make, caller, target, changes: make(caller, str(target), **changes),
        st.sampled_from([inbound, inbound, outbound]),
        st.sampled_from([*NAMES, *NAMES, *OTHERS]),
        st.sampled_from([*TARGETS, Target("gone", "x")]),
        st.sampled_from(
            [
                {},
                {},
                {"rule": "gone"},
                {"probe": True},
                {"decision": "deny", "reason": "policy_denied", "rule": None},
                {"decision": "deny", "reason": "unexpected_peer"},
                {"reason": "truncated"},
                {"domain": "other.internal"},
                {"event": "mitm_suspected"},
            ]
        ),
    ),
    max_size=12,
)


def text_of(written: list[tuple[str, str, str]]) -> str:
    made = (f"  - {{name: r{n}, from: {a}, to: {b}{more}}}\n" for n, (a, b, more) in enumerate(written))
    return HEAD + "".join(made)


def is_allowed(mesh: Mesh, call: Call) -> bool:
    return decide(mesh, call.source, call.target.service, call.target.port, AFTER).allowed


EVERY = [Call(SpiffeId(DOMAIN, tuple(name.split("/"))), target) for name in [*NAMES, *OTHERS] for target in TARGETS]


@given(rules, lines, st.sets(st.sampled_from(EVERY)))
def test_learning(written: list[tuple[str, str, str]], seen_lines: list[dict[str, Any]], mentioned: set[Call]) -> None:
    text = text_of(written)
    before, seen = parse_mesh(text, "m"), Seen(DOMAIN)
    for line in seen_lines:
        seen.take(line)

    def once(text: str) -> str:
        mesh = parse_mesh(text, "m")
        evidence = Evidence(mentioned.__contains__, commented=commented_out(text, mesh))
        return merged(text, mesh, learn(mesh, seen, evidence, NOW, {"observe"}))

    after = once(text)
    assert after.startswith(text)
    assert once(after) == after
    mesh = parse_mesh(after, "m")
    good = {
        Call(SpiffeId(DOMAIN, tuple(peer.split("/"))), Target(target, port))
        for line in seen_lines
        if line["event"] == "connection" and line["decision"] == "allow" and line["reason"] == "ok"
        if line["direction"] == "inbound" or "/" not in line["service"]  # no sidecar is called that
        if "probe" not in line and line["rule"] == "observe" and f"//{DOMAIN}/" in line["peer_id"]
        for peer, target, port in [
            (line["peer_id"].removeprefix(f"spiffe://{DOMAIN}/"), line["service"], line["port"])
            if line["direction"] == "inbound"
            else (line["service"], *line["upstream"].split(":"))
        ]
    }
    alarmed = {call for call in good if seen.is_alarmed(call)}
    for call in EVERY:
        if is_allowed(mesh, call) != is_allowed(before, call):
            assert call in (good & mentioned) - alarmed
            assert not is_allowed(before, call)
        elif call in (good & mentioned) - alarmed and not is_allowed(mesh, call):
            denied = any(rule.action == "deny" and rule.mode == "enforce" and rule.fits(*call) for rule in before.rules)
            ran_out = any(rule.name != "observe" and rule.fits(*call) and rule.ran_out(NOW) for rule in before.rules)
            assert denied or ran_out or str(call.source) in {f"spiffe://{DOMAIN}/{name}" for name in OTHERS[1:]}
