"""All words in one place: :func:`look_up` finds what one means, :func:`tables` makes those of the reference. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sidecar.documents.problems import did_you_mean
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import shown
from sidecar.meanings.meaning import Kind, Meaning, Side
from sidecar.meanings.of_alerts import ALERTS
from sidecar.meanings.of_denials import DENIALS
from sidecar.meanings.of_events import EVENTS
from sidecar.meanings.of_reasons import REASONS

EVERY: tuple[Meaning, ...] = (*REASONS, *ALERTS, *DENIALS, *EVENTS)

_TITLES = {
    Kind.REASON: (
        "The reasons of connections",
        "The field `reason` of a line `connection`. *Inbound* is the sidecar that was called, *outbound* the one that "
        "calls.",
    ),
    Kind.ALERT: ("A peer's TLS alerts", "The field `peer_reason`, where the peer gave no reason of the table before."),
    Kind.DENIAL: (
        "The CA's refusals",
        "The field `reason` of the CA's line `denied`; a sidecar quotes it in brackets.",
    ),
    Kind.EVENT: ("The events of the logs", "The field `event` of every line."),
}


def look_up(word: str) -> tuple[Meaning, ...]:
    """What a word means: several entries where it is met in several places, or means something else at each end. Raises
    :class:`UsageError` for an unknown one."""
    asked = _plain(word)
    found = tuple(one for one in EVERY if _plain(one.word) == asked)
    if not found:
        near = did_you_mean(asked, words())
        raise UsageError(
            f"{shown(word)} is no word of the logs, and no connection_id{near}; `sidecar explain` lists all words"
        )
    return found


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_")


def words() -> list[str]:
    """Every word, once."""
    return list(dict.fromkeys(one.word for one in EVERY))


def of_reason(word: str, side: Side) -> Meaning | None:
    """What the reason of a connection, or of its peer, means at one end; None for a word that is not known."""
    mine = [
        one for one in EVERY if one.word == word and one.kind in (Kind.REASON, Kind.ALERT) and one.side in ("", side)
    ]
    others = [one for one in EVERY if one.word == word and one.kind is Kind.REASON]
    return next(iter(mine or others), None)


def of_event(word: str) -> Meaning | None:
    """What an event means; None for one that is not known."""
    return next((one for one in EVENTS if one.word == word), None)


def overview() -> Iterator[str]:
    """Every word with what it means, by kind, as lines for people."""
    width = max(map(len, words()))
    for kind, (title, _) in _TITLES.items():
        yield f"{title}:"
        for word, some in _by_word(kind):
            yield from (f"  {word if at == 0 else '':{width}}  {_sided(one)}" for at, one in enumerate(some))
        yield ""


def tables() -> Iterator[str]:
    """The lines of the reference, in Markdown: a table for each kind."""
    yield from (
        "## The words of the logs",
        "",
        "`sidecar explain WORD` prints the same, `sidecar explain CONNECTION_ID` explains a line. Names in capitals are "
        "yours to fill in.",
    )
    for kind, (title, where) in _TITLES.items():
        yield from ("", f"### {title}", "", where, "")
        yield from ("| word | means | likely causes | what to do next |", "|---|---|---|---|")
        for word, some in _by_word(kind):
            for one in some:
                name = f"`{word}`" + (f", {one.side}" if one.side else "")
                cells = (name, one.means, *(_cell(texts) for texts in (one.causes, one.steps)))
                yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _by_word(kind: Kind) -> Iterator[tuple[str, Sequence[Meaning]]]:
    mine = [one for one in EVERY if one.kind is kind]
    for word in dict.fromkeys(one.word for one in mine):
        yield word, [one for one in mine if one.word == word]


def _sided(one: Meaning) -> str:
    return f"{one.side}: {one.means}" if one.side else one.means


def _cell(texts: Iterable[str]) -> str:
    return "<br>".join(texts)
