"""Words are found, and every command that an entry names exists, with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

import click
import pytest

from certs.cli.commands import main as certs
from sidecar.cli.commands import main as sidecar
from sidecar.identity.reasons import Reason, UsageError
from sidecar.meanings.glossary import EVERY, look_up, of_event, of_reason, overview, tables, words
from sidecar.meanings.meaning import PLACEHOLDERS, Kind, Meaning

QUOTED = re.compile(r"`([^`]+)`")
OURS = {"sidecar": sidecar, "certs": certs}
OTHERS = {"curl", "date", "df", "docker", "getent", "ip", "ls", "openssl", "ss"}
"""Programs of others that a step may run."""

NAMES = r"[A-Z]+(?::HASH)?"
ARGUMENT = re.compile(rf"{NAMES}|N:HASH")


def texts(one: Meaning) -> tuple[str, ...]:
    return (one.means, *one.causes, *one.steps)


def commands(texts: Iterable[str]) -> list[list[str]]:
    """What is quoted in these texts that is a command of ours with arguments."""
    found = [shlex.split(quoted) for text in texts for quoted in QUOTED.findall(text)]
    return [parts for parts in found if parts and parts[0] in OURS]


def fault(parts: list[str]) -> str | None:
    """What is wrong with a command line: a word, an option, a number of arguments."""
    command: click.Command = OURS[parts[0]]
    rest = parts[1:]
    context = click.Context(command)
    while isinstance(command, click.Group):
        if not rest:
            return "no command"
        found = command.get_command(context, rest[0])
        if found is None:
            return f"no command {rest[0]}"
        command, rest = found, rest[1:]
    options = {
        name: one
        for one in command.params
        if isinstance(one, click.Option)
        for name in (*one.opts, *one.secondary_opts)
    }
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    free = []
    while rest:
        word, rest = rest[0], rest[1:]
        if not word.startswith("-"):
            free.append(word)
        elif word not in options:
            return f"no option {word}"
        elif not options[word].is_flag:
            if not rest:
                return f"{word} without a value"
            rest = rest[1:]
    most = sum(one.nargs for one in arguments) if all(one.nargs > 0 for one in arguments) else len(free)
    least = sum(one.required and one.nargs > 0 for one in arguments)
    return None if least <= len(free) <= most else f"{len(free)} arguments"


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind.name}-{one.word}-{one.side}")
def test_every_command_exists_with_its_options(one: Meaning) -> None:
    for parts in commands(one.steps):
        wrong = fault(parts)
        assert wrong is None or (len(parts) == 2 and wrong == "0 arguments"), (parts, wrong)
    for parts in commands((one.means, *one.causes)):  # named there, and not to be run as it stands
        wrong = fault(parts)
        assert wrong is None or wrong.endswith((" arguments", " without a value")), (parts, wrong)


@pytest.mark.parametrize(
    "text",
    [
        *("sidecar stattus", "sidecar status --every", "sidecar policy", "certs list a b", "sidecar explain ID --log"),
        *("certs enrolment DIR SERVICE --in x", "sidecar policy explain MESH OTHER --from a --to b", "certs issue"),
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str) -> None:
    assert fault(text.split()) is not None


@pytest.mark.parametrize(
    "text",
    ["sidecar status", "sidecar check A B C", "sidecar explain ID --log LOG", "certs renew-issuing DIR --distrust"],
)
def test_a_command_that_exists_is_accepted(text: str) -> None:
    assert fault(text.split()) is None


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind.name}-{one.word}-{one.side}")
def test_what_is_quoted_at_the_beginning_of_a_step_is_a_known_program(one: Meaning) -> None:
    for step in one.steps:
        if step.startswith("`"):
            assert QUOTED.findall(step)[0].split()[0] in {*OURS, *OTHERS}, step


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind.name}-{one.word}-{one.side}")
def test_the_sentences_are_sentences(one: Meaning) -> None:
    for text in (one.means, *one.causes, *one.steps):
        assert text.endswith((".", "`")), text
        assert text.count("`") % 2 == 0, text
        assert text.isprintable()
        assert text[0].isupper() or text[0] in "`0123456789", text


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind.name}-{one.word}-{one.side}")
def test_capitals_in_a_command_say_what_they_stand_for(one: Meaning) -> None:
    left = {word for parts in commands(texts(one)) for word in parts if ARGUMENT.fullmatch(word)}
    assert left - PLACEHOLDERS.keys() <= {"N:HASH", "DIRECTORY"}


def test_a_word_in_several_places_has_all_its_meanings() -> None:
    assert {one.kind for one in look_up("internal_error")} == set(Kind)
    assert [one.side for one in look_up("policy_denied")] == ["inbound", "outbound"]


def test_a_word_with_a_hyphen() -> None:
    assert [one.word for text in ("re-enrolled", "re_enrolled") for one in look_up(text)] == ["re-enrolled"] * 2


@pytest.mark.parametrize("text", ["policy_denied", "POLICY-DENIED", " policy_denied "])
def test_a_word_as_people_write_it(text: str) -> None:
    assert look_up(text)[0].word == "policy_denied"


@pytest.mark.parametrize(
    ("text", "near"), [("polcy_denied", "'policy_denied'"), ("mitm", None), ("x" * 9999, None), ("\x1b[2J", None)]
)
def test_an_unknown_word(text: str, near: str | None) -> None:
    with pytest.raises(UsageError, match="is no word of the logs") as caught:
        look_up(text)
    assert (near is not None) == ("did you mean" in str(caught.value))
    assert near is None or near in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_a_reason_means_at_an_end() -> None:
    inbound, outbound = of_reason("no_certificate", "inbound"), of_reason("no_certificate", "outbound")
    assert inbound is not None
    assert outbound is not None
    assert (inbound.side, outbound.side) == ("inbound", "outbound")
    alert = of_reason("decrypt_error", "inbound")
    assert alert is not None
    assert alert.kind is Kind.ALERT
    only = of_reason(Reason.UNEXPECTED_PEER, "inbound")
    assert only is not None
    assert only.side == "outbound"
    assert of_reason("certificate_failed", "inbound") is None
    assert of_reason("'; drop", "inbound") is None


def test_what_an_event_means() -> None:
    found = of_event("certificate_failed")
    assert found is not None
    assert found.kind is Kind.EVENT
    assert of_event("policy_denied") is None


def test_the_overview_and_the_tables_have_every_word() -> None:
    listed, table = "\n".join(overview()), "\n".join(tables())
    for word in words():
        assert f"  {word} " in listed
        assert f"| `{word}`" in table
    assert table.count("\n| `") == len(EVERY)


def test_every_row_of_the_tables_has_four_cells() -> None:
    for line in tables():
        if line.startswith("| `"):
            assert len(re.split(r"(?<!\\)\|", line)) == 6, line
