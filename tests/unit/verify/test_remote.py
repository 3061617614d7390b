"""The stranger elsewhere: what is asked arrives, and an answer that is none is no pass."""

from __future__ import annotations

import json

import pytest

from sidecar.verify import remote, stranger
from sidecar.verify.judgement import Attempt, Listener, Outcome, Seen
from sidecar.verify.stranger import Credential

WANTED = [(Listener("api", "http", "10.0.0.1:80"), what) for what in (Attempt.PLAINTEXT, Attempt.NO_RULE)]
OWN = {Attempt.NO_RULE: Credential("certificate", "key")}


def test_what_is_asked_is_what_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [Seen(Outcome.REFUSED, "by an alert", "10.0.0.9:5", "aa", "policy_denied"), Seen(Outcome.LET_IN, "hello")]

    def attempt_all(wanted: object, credentials: object) -> list[Seen]:
        assert (wanted, credentials) == (WANTED, OWN)
        return seen

    monkeypatch.setattr(stranger, "attempt_all", attempt_all)
    assert remote.attempt_all(remote.play, WANTED, OWN) == seen


@pytest.mark.parametrize(
    "answer",
    ["", "null", "{}", '{"seen": [["refused"]]}', '{"seen": 1}', '{"seen": [["unknown", "x", "", "", ""], 1]}',
     '{"seen": [["refused", "x", "", "", ""]]}'],
)  # fmt: skip
def test_an_answer_that_is_none_means_that_nothing_was_tried(answer: str) -> None:
    found = remote.attempt_all(lambda _: answer, WANTED, OWN)
    assert [one.outcome for one in found] == [Outcome.UNREACHABLE] * 2


def test_a_container_that_is_away_means_that_nothing_was_tried() -> None:
    def fails(_: str) -> str:
        raise OSError("no such container")

    found = remote.attempt_all(fails, WANTED, OWN)
    assert {(one.outcome, one.detail) for one in found} == {
        (Outcome.UNREACHABLE, "nobody could try: no such container")
    }
    assert remote.reach_all(fails, ["10.0.0.1:80"]) == [(None, "nobody could try: no such container")]


def test_an_address_is_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stranger, "reach", lambda address: (True, f"reached {address}"))
    assert remote.reach_all(remote.play, ["10.0.0.1:80"]) == [(True, "reached 10.0.0.1:80")]


@pytest.mark.parametrize("reached", [[], [[]], [[1, "x"]], ["x"], None])
def test_an_answer_about_an_address_that_is_none_is_no_answer(reached: object) -> None:
    found = remote.reach_all(lambda _: json.dumps({"reached": reached}), ["10.0.0.1:80"])
    assert [was for was, _ in found] == [None]
