"""What happened, in words: both ends, one end, a channel, and text that an attacker wrote."""

from __future__ import annotations

from typing import Any

from sidecar.explain.records import Entry
from sidecar.explain.story import MAX_CONNECTIONS, MAX_ENTRIES, as_text, meaning_lines, names_left, tell
from sidecar.meanings.glossary import look_up

ID = "9ff9410d905a0f96"

OUT = {
    "time": "2026-11-30T06:00:00.000000Z", "event": "connection", "direction": "outbound", "service": "web", "port": "5432",
    "peer_address": "10.0.0.7:5432", "peer_id": "spiffe://shop.internal/db", "upstream": "db:5432", "decision": "deny",
    "rule": "web->db", "reason": "peer_refused", "peer_reason": "policy_denied", "bytes_to_app": 0, "bytes_from_app": 0,
    "duration_ms": 12.5, "connection_id": ID, "message": "refused: web was refused by the peer: policy_denied",
}  # fmt: skip
IN = {
    "time": "2026-11-30T06:00:00.001000Z", "event": "connection", "direction": "inbound", "service": "db", "port": "5432",
    "peer_address": "10.0.0.9:41000", "peer_id": "spiffe://shop.internal/web", "upstream": "127.0.0.1:5432",
    "decision": "deny", "reason": "policy_denied", "bytes_to_app": 0, "bytes_from_app": 0, "duration_ms": 3.0,
    "connection_id": ID, "message": "refused: db does not let web in: no rule allows it",
}  # fmt: skip
ALARM = {
    "time": "2026-11-30T06:00:00.002000Z", "event": "mitm_suspected", "service": "web", "upstream": "db:5432",
    "reason": "unexpected_peer", "peer_address": "10.0.0.7:5432", "expected": "spiffe://shop.internal/db",
    "connection_id": ID, "message": "refused: web expected …", "next": "find out …", "presented": "subject CN=x",
}  # fmt: skip


def told(*lines: dict[str, Any], mesh: str = "") -> dict[str, Any]:
    return tell(ID, [Entry("a.log", line) for line in lines], ["a.log"], mesh)


def without(line: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in {**line, **more}.items() if name not in names}


def test_both_ends_of_a_call_that_the_callee_refused() -> None:
    document = told(IN, OUT, mesh="mesh/mesh.yaml")
    (one,) = document["connections"]
    assert (one["caller"], one["target"]) == ("web", "db:5432")
    assert [end["direction"] for end in one["ends"]] == ["outbound", "inbound"]
    assert [(it["word"], it.get("side")) for it in one["meanings"]] == [("policy_denied", "inbound")]
    text = as_text(document)
    assert f"connection {ID}: web -> db:5432" in text
    assert (
        "at the sidecar of web, which calls (outbound), 2026-11-30T06:00:00.000000Z:\n  refused: peer_refused" in text
    )
    assert "other end: spiffe://shop.internal/db (proved) at 10.0.0.7:5432" in text
    assert "  rule: web->db\n" in text
    assert (
        "at the sidecar of db, which was called (inbound), 2026-11-30T06:00:00.001000Z:\n  refused: policy_denied"
        in text
    )
    assert "  rule: none; without a rule that allows it, a call is refused" in text
    assert "`sidecar policy explain mesh/mesh.yaml --from web --to db:5432`" in text
    assert "carried" not in text
    assert text.endswith("Read: a.log.")


def test_the_caller_s_end_alone_explains_the_peer_s_word_first() -> None:
    (one,) = told(OUT)["connections"]
    assert [it["word"] for it in one["meanings"]] == ["policy_denied"]
    text = as_text(told(OUT))
    assert "at the sidecar which was called (inbound): no line in what was read" in text
    assert "the other end's word: policy_denied" in text
    assert "MESH: the mesh.yaml" in text


def test_a_refusal_without_a_word_is_explained_as_one() -> None:
    (one,) = told(without(OUT, "peer_reason"))["connections"]
    assert [it["word"] for it in one["meanings"]] == ["peer_refused"]


def test_the_callee_s_end_alone() -> None:
    (one,) = told(IN)["connections"]
    assert (one["caller"], one["target"]) == ("web", "db:5432")
    assert [it["word"] for it in one["meanings"]] == ["policy_denied"]


def test_a_caller_that_has_no_service_name_is_named_whole() -> None:
    (one,) = told(without(IN, peer_id="spiffe://shop.internal/batch/nightly"))["connections"]
    assert one["caller"] == "spiffe://shop.internal/batch/nightly"


def test_an_alarm() -> None:
    out = without(OUT, "peer_id", "peer_reason", reason="unexpected_peer", unverified="subject CN=x")
    document = told(out, ALARM)
    (one,) = document["connections"]
    assert [it["word"] for it in one["meanings"]] == ["unexpected_peer", "mitm_suspected"]
    text = as_text(document)
    assert "other end: 10.0.0.7:5432, which proved no identity" in text
    assert "it claimed, unproved: subject CN=x" in text
    assert "mitm_suspected, logged by the sidecar of web" in text
    assert "it showed, unproved: subject CN=x" in text
    assert "Find out who has the address 10.0.0.7:5432" in text
    assert "ip neigh show 10.0.0.7`" in text


def test_an_alarm_alone() -> None:
    text = as_text(told(ALARM))
    assert f"connection {ID}: web -> db:5432" in text
    assert "no line in what was read" not in text


def test_a_connection_that_went_well_has_no_causes() -> None:
    well = without(OUT, "peer_reason", "message", decision="allow", reason="ok")
    (one,) = told(well, without(IN, "message", decision="allow", reason="ok", rule="web->db"))["connections"]
    assert [it["word"] for it in one["meanings"]] == ["ok"]
    assert "  let in: ok" in as_text(told(well))
    assert "carried: 0 bytes to the app, 0 bytes from it in 12.5 ms" in as_text(told(well))


def test_a_call_that_reached_nobody() -> None:
    text = as_text(told(without(OUT, "peer_id", "peer_address", "peer_reason", "rule", reason="policy_denied")))
    assert "other end: nobody was reached" in text


def test_a_refusal_before_the_policy_was_asked() -> None:
    text = as_text(told(without(IN, "peer_id", reason="no_certificate", peer_reason="no_certificate")))
    assert "  rule: none was asked: the connection ended before the policy was" in text
    assert f"connection {ID}: somebody -> db:5432" in text


def test_a_line_for_people_is_shown_as_it_is() -> None:
    entry = Entry(
        "a", {"event": "connection", "direction": "inbound", "reason": "expired", "connection_id": ID}, "06:00 db <- x"
    )
    document = tell(ID, [entry], ["a"])
    assert "  06:00 db <- x\n" in as_text(document)
    assert document["connections"][0]["meanings"][0]["word"] == "expired"


def test_the_same_log_twice_changes_nothing() -> None:
    assert told(IN, OUT, IN, OUT) == told(IN, OUT)


def test_of_a_channel_the_last_connections_are_told() -> None:
    lines = [without(OUT, connection_id=f"{ID}-{number}") for number in [*range(1, 40), *range(1, 40)]]
    document = told(*lines)
    numbers = [one["connection_id"] for one in document["connections"]]
    assert numbers == [f"{ID}-{number}" for number in range(40 - MAX_CONNECTIONS, 40)]
    assert document["earlier_left_out"]
    assert "earlier ones are left out" in as_text(document)
    assert not told(OUT)["earlier_left_out"]


def test_one_connection_s_lines_are_bounded() -> None:
    (one,) = told(*({**ALARM, "time": str(number)} for number in range(1000)))["connections"]
    assert len(one["events"]) == MAX_ENTRIES


def test_a_value_that_a_shell_would_obey_is_in_no_command() -> None:
    evil = without(OUT, service="$(reboot)", upstream="--to x", peer_address="`id`:1")
    (one,) = told(evil)["connections"]
    steps = "\n".join(step for it in one["meanings"] for step in it["next"])
    assert not {"$(reboot)", "--to x", "`id`"} & set(steps.split())
    assert "reboot" not in steps
    assert "--from CALLER --to TARGET" in steps


def test_unknown_words_and_empty_lines_are_told_too() -> None:
    text = as_text(
        told({"event": "connection", "direction": "outbound", "connection_id": ID, "reason": "tomorrow's word"})
    )
    assert "refused: tomorrow's word" in text
    assert as_text(told({"event": "connection", "connection_id": ID}))


def test_an_entry_of_the_glossary_as_text() -> None:
    (one,) = look_up("renewed")
    assert list(meaning_lines({"word": one.word, **one.as_json()})) == [
        "renewed (event of the log)",
        "  The sidecar has a new certificate, with a fresh key.",
    ]
    assert list(names_left([])) == []
