"""Finds the names of services in a text, and the ports they are called at. Pure.

Only the application's own names are looked for. Text that resembles a name or a port and is neither (an image's tag, a
password, a time) must not become a port. So a name counts only as a whole word, and a port only where nothing else can be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sidecar.inject.wellknown import HEALTH_PROGRAMS, SCHEMES

LOWEST_PORT = 21
"""In a text, ``redis:7`` is an image and not a port. Declared ports may be lower."""


class Reference(NamedTuple):
    """A callee, the port if the text has one, and the line."""

    callee: str
    port: int | None
    line: int


_NAME = r"(?:(?<=:-)|(?<![\w.-]))([A-Za-z0-9][\w.-]*)"
_NAME_PORT = re.compile(_NAME + r":(\d{2,5})(?![\w@-]|\.\d)")
_NAME_SPACE_PORT = re.compile(_NAME + r"(?:\s+-p)?\s+(\d{2,5})(?![\w.:-])")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^\s/@\"']*@)?([A-Za-z0-9][\w.-]*)(?![\w:.-])")
_OPTION = re.compile(
    r"(?:^|\s)(?:-h|-H|--[\w-]*(?:host|server|url|addr|address|broker)[\w-]*)[= ]\s*([A-Za-z0-9][\w.-]*)(?![\w:.-])"
)
_WORD = re.compile(r"(?i)(?:host|addr|address|url|uri|endpoint|broker|node|peer|target|remote|server(?!_name)|backend)[\w-]*"
                   r"[\"'\]]*\s*(?:=>|[:=,])\s*[\[\"'({]*\s*([A-Za-z0-9][\w.-]*)(?![\w:./-])")  # fmt: skip
_IMAGE_LINE = re.compile(r"(?i)^\s*-?\s*[\"']?(?:image|from)\b")
_COMMENT_LINE = re.compile(r"^\s*(?:#|//|;|--\s)")
_HOST_KEY = re.compile(
    r"(?i)(?:^|_)(?:HOST(?:NAME|S)?|SERVERS?|ADDR(?:ESS(?:ES)?)?|UR[LI]S?|ENDPOINTS?|BROKERS?(?:_URL)?|NODES?|PEERS?|SEEDS?|"
    r"UPSTREAMS?|BACKENDS?|TARGETS?|DSN|CONNECT(?:ION)?|BOOTSTRAP|SEED_HOSTS|SERVICE|INSTANCES)$"
)
_PORT_KEY = re.compile(r"(?i)(?:HOST(?:NAME)?|SERVER|ADDR(?:ESS)?)$")
_OWN = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]|\$\{?HOSTNAME\}?)[: ](\d{2,5})(?!\d)")
_OWN_URL = re.compile(r"(https?)://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?![\w:.-])")
_OWN_OPTION = re.compile(r"(?:--(?:http-|listen-|server\.)?port|--bind|--listen|-b)[= ](?::|\*:)?(\d{2,5})(?![\d.:])")


def in_text(text: str, names: Mapping[str, str], *, words: bool = False) -> Iterator[Reference]:
    """``name:port`` and URLs, anywhere; with ``words``, for configuration, also a bare name as the value of a host-like key.

    ``names`` maps each name that the service can call to the callee. Comments and image lines are skipped."""
    for number, line in enumerate(text.splitlines(), 1):
        if _IMAGE_LINE.match(line) or _COMMENT_LINE.match(line):
            continue
        for match in _NAME_PORT.finditer(line):
            yield from _reference(names, match[1], int(match[2]), number)
        for match in _URL.finditer(line):
            yield from _reference(names, match[2], SCHEMES.get(match[1].lower().partition("+")[0]), number)
        for match in _WORD.finditer(line) if words else ():
            yield from _reference(names, match[1], None, number)


def in_command(text: str, names: Mapping[str, str]) -> Iterator[Reference]:
    """The references of any text, and those of command lines: ``nc -z db 5432``, ``--host=db``."""
    text = text.replace("\n", " ")
    yield from in_text(text, names)
    for match in _NAME_SPACE_PORT.finditer(text):
        yield from _reference(names, match[1], int(match[2]), 1)
    for match in _OPTION.finditer(text):
        yield from _reference(names, match[1], None, 1)


def in_environment(environment: Mapping[str, str], names: Mapping[str, str]) -> Iterator[tuple[str, Reference]]:
    """Pairs of variable and reference: ``name:port`` and URLs in any variable, a bare name only under a host-like key, whose
    port may be in a variable of its own (``DB_HOST`` and ``DB_PORT``)."""
    for key, value in environment.items():
        for reference in in_text(value, names):
            yield key, reference
        if _HOST_KEY.search(key):
            for word in re.split(r"[\s,;]+", value):
                port = environment.get(_PORT_KEY.sub("PORT", key), "") if _PORT_KEY.search(key) else ""
                for reference in _reference(names, word, int(port) if port.isdigit() else None, 1):
                    yield key, reference


def own_ports(command: str) -> tuple[int, ...]:
    """The ports that a service listens on according to its own command."""
    found = [int(match[1]) for pattern in (_OWN, _OWN_OPTION) for match in pattern.finditer(command)]
    return _ports(found)


def health_ports(test: str, names: Mapping[str, str]) -> tuple[int, ...]:
    """The service's own ports that its health check connects to; ``names`` are the service's names."""
    found = [int(match[1]) for match in _OWN.finditer(test)]
    found += [SCHEMES[match[1]] for match in _OWN_URL.finditer(test)]
    found += [reference.port for reference in in_text(test, names) if reference.port is not None]
    if not found:
        option = re.search(r"(?:\s-[pP]\s*|--port[= ])(\d{2,5})(?!\d)", test)
        found += [int(option[1])] if option else []
    if not found:
        found += [
            port
            for program, port in HEALTH_PROGRAMS.items()
            if re.search(rf"(?<![\w.-]){re.escape(program)}(?![\w-])", test)
        ]
    return _ports(found)


def exposed_ports(dockerfile: str) -> tuple[tuple[int, ...], str]:
    """The TCP ports that a Dockerfile's last stage exposes, and its base image."""
    ports: list[int] = []
    variables: dict[str, str] = {}
    bases: dict[str, tuple[list[int], str]] = {}
    base, stage = "", ""
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        words = line.split()
        if not words:
            continue
        keyword = words[0].upper()
        if keyword == "FROM":
            bases[stage] = (ports, base)
            plain = [_expanded(word, variables) for word in words[1:] if not word.startswith("--")]
            inherited, base = bases.get((plain or [""])[0].lower(), ([], (plain or [""])[0]))
            ports = list(inherited)
            stage = plain[2].lower() if len(plain) > 2 and plain[1].upper() == "AS" else ""
        elif keyword in {"ARG", "ENV"}:
            pairs = [f"{words[1]}={words[2]}"] if len(words) == 3 and "=" not in words[1] else words[1:]
            variables |= {k: v.strip("\"'") for k, eq, v in (pair.partition("=") for pair in pairs) if eq}
        elif keyword == "EXPOSE":
            for word in words[1:]:
                number, _, protocol = _expanded(word, variables).partition("/")
                if number.isdigit() and protocol.lower() in {"", "tcp"}:
                    ports.append(int(number))
    return tuple(port for port in dict.fromkeys(ports) if 0 < port < 65536), base


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    return re.sub(
        r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))",
        lambda match: variables.get(match[1] or match[3], match[2] or ""),
        word,
    )


def _reference(names: Mapping[str, str], name: str, port: int | None, line: int) -> Iterator[Reference]:
    callee = names.get(name) or names.get(name.rstrip("."))
    if callee is not None and (port is None or LOWEST_PORT <= port <= 65535):
        yield Reference(callee, port, line)


def _ports(found: list[int]) -> tuple[int, ...]:
    return tuple(port for port in dict.fromkeys(found) if LOWEST_PORT <= port <= 65535)
