"""A text is a SPIFFE ID if and only if a checker that shares no code with the parser says so; no two texts are one ID."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, parse_spiffe_id, parse_svid, shown
from tests.beds.certificates import Authority

_DOMAIN = string.ascii_lowercase + string.digits + "._-"
_PATH = string.ascii_letters + string.digits + "._-"
_LEAF = Authority().leaf("api").der

domains = st.text(_DOMAIN, min_size=1, max_size=255)
segments = st.text(_PATH, min_size=1, max_size=40).filter(lambda text: text not in (".", ".."))
ids = st.builds(SpiffeId, domains, st.lists(segments, min_size=1, max_size=5).map(tuple))
almost = st.lists(
    st.sampled_from(
        ["spiffe://", "spiffe:/", "/", "//", ".", "..", "a", "shop.internal", "A", "%61", "\0", "\n", "é", ":", "@", "?"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


def is_spiffe_id(text: str) -> bool:
    """The grammar again, character by character: no regular expression, no split, no shared constant."""
    if not all(ord(character) < 128 for character in text) or len(text) > 2048:
        return False
    if text[:9] != "spiffe://":
        return False
    rest = text[9:]
    slash = rest.find("/")
    if slash < 1 or slash > 255:
        return False
    for character in rest[:slash]:
        if not ("a" <= character <= "z" or "0" <= character <= "9" or character in "._-"):
            return False
    segment = ""
    for character in rest[slash + 1 :] + "/":
        if character == "/":
            if segment in ("", ".", ".."):
                return False
            segment = ""
        elif "a" <= character <= "z" or "A" <= character <= "Z" or "0" <= character <= "9" or character in "._-":
            segment += character
        else:
            return False
    return True


def parses(text: str) -> bool:
    try:
        return str(parse_spiffe_id(text)) == text
    except InvalidIdentityError:
        return False


@given(ids)
def test_what_is_written_is_read_back(one: SpiffeId) -> None:
    assert parse_spiffe_id(str(one)) == one
    assert is_spiffe_id(str(one))


@given(st.one_of(st.text(), almost, almost.map("spiffe://shop.internal/".__add__), ids.map(str)))
def test_the_parser_and_the_checker_agree(text: str) -> None:
    assert parses(text) == is_spiffe_id(text)


@given(ids.map(str), st.data())
def test_no_change_of_one_byte_is_the_same_id(text: str, data: st.DataObject) -> None:
    original = text.encode()
    at = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[at]))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    mutant = original[:at] + (b"" if kind == "delete" else bytes([byte])) + original[at + (kind != "insert") :]
    changed = mutant.decode("latin-1")
    if changed == text:
        return  # a byte inserted before, or deleted from, a run of the same
    try:
        assert parse_spiffe_id(changed) != parse_spiffe_id(text)
    except InvalidIdentityError:
        assert not is_spiffe_id(changed)


@given(ids, ids)
def test_ids_are_equal_if_and_only_if_their_texts_are(one: SpiffeId, other: SpiffeId) -> None:
    assert (one == other) == (str(one) == str(other))


@given(st.text())
def test_what_is_shown_is_one_line_of_printable_ascii(text: str) -> None:
    assert shown(text).isascii()
    assert shown(text).isprintable()


@given(st.integers(0, len(_LEAF) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_an_svid_or_named_as_none(at: int, flip: int) -> None:
    damaged = _LEAF[:at] + bytes([_LEAF[at] ^ flip]) + _LEAF[at + 1 :]
    try:
        svid = parse_svid(damaged)
    except InvalidIdentityError:
        return
    assert is_spiffe_id(str(svid.id))
