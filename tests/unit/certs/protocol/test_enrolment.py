"""Tokens and secrets as text: what is one, what is none, and that no message or ``repr`` tells it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.protocol import enrolment
from certs.protocol.enrolment import EnrolmentCredential, Kind

ROOT = bytes(range(32))
KINDS: list[Kind] = ["token", "secret"]


@pytest.mark.parametrize(("kind", "bits"), [("token", 128), ("secret", 256)])
def test_a_new_one_is_random_and_says_which_mesh_it_is_for(kind: Kind, bits: int) -> None:
    made = enrolment.make(kind, ROOT)
    assert len(bytes.fromhex(made.secret)) * 8 == bits
    assert (made.kind, made.root) == (kind, ROOT)
    assert str(made).startswith(f"mesh-{kind}.")
    assert str(made).endswith(f".{ROOT.hex()}")
    assert len({enrolment.make(kind, ROOT).secret for _ in range(50)}) == 50


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_as_it_was_written(kind: Kind) -> None:
    made = enrolment.make(kind, ROOT)
    assert enrolment.parse(str(made)) == made


TOKEN = f"mesh-token.{'1f' * 16}.{ROOT.hex()}"
SECRET = f"mesh-secret.{'1f' * 32}.{ROOT.hex()}"


@pytest.mark.parametrize("text", [TOKEN, SECRET])
def test_the_twins(text: str) -> None:
    assert str(enrolment.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mesh-token",
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN.upper(),
        TOKEN.replace("1f", "1F"),
        TOKEN.replace("mesh-token", "mesh-secret"),
        SECRET.replace("mesh-secret", "mesh-token"),
        TOKEN.replace("mesh-token", "mesh-tokens"),
        TOKEN[:-2],
        TOKEN + "00",
        TOKEN.replace("1f1f", "1g1f", 1),
        TOKEN.replace(".", "/"),
        TOKEN.replace("1f", "1f", 1).replace("1", "١", 1),
        TOKEN + "." + TOKEN,
        "a" * 1_000_000,
    ],
)
def test_whatever_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a token or an enrolment secret|of the wrong length") as refused:
        enrolment.parse(text)
    assert "1f1f" not in str(refused.value), "a mistyped secret is secret still"


def test_its_repr_is_no_secret() -> None:
    made = enrolment.make("secret", ROOT)
    assert repr(made) == "<a secret for enrolment>"
    assert made.secret not in f"{made!r} {[made]} {{'pass': {made!r}}}"


def test_what_is_stored_tells_nothing_and_depends_on_kind_and_secret_alone() -> None:
    made = enrolment.make("token", ROOT)
    kept = enrolment.stored(made)
    assert made.secret not in kept
    assert kept == enrolment.stored(enrolment.parse(str(made)))
    assert kept == enrolment.stored(EnrolmentCredential("token", made.secret, bytes(32)))
    assert kept != enrolment.stored(EnrolmentCredential("secret", made.secret, ROOT))
    assert kept != enrolment.stored(enrolment.make("token", ROOT))


@settings(deadline=None)
@given(st.one_of(st.text(max_size=200), st.from_regex(r"mesh-(token|secret)\.[0-9a-fA-F]{30,66}\.[0-9a-f]{64}\n?")))
def test_a_text_is_refused_or_is_exactly_what_its_pass_writes(text: str) -> None:
    try:
        made = enrolment.parse(text)
    except ValueError:
        return
    assert str(made) == text
    assert len(made.secret) == (32 if made.kind == "token" else 64)
