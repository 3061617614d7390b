"""Finds the names of services in a text, and the ports they are called at. Pure.

Only the application's own names are looked for. Text that resembles a name or a port and is neither (an image's tag, a
password, a time, a comment) must not become a port. So a name counts only as a whole word, and a port only where nothing
else can be. What stands before a name decides too (``keys``): a bare name counts only under a key that says "host", and
nothing counts under one that lists who may call.

Texts are first made plain (``_plain``): comments, users and passwords of URLs go, ``{1...3}`` and known variables are
written out. Then only the lines are read that hold a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from string import ascii_letters, digits
from typing import NamedTuple

from sidecar.inject.keys import is_called_after, is_certain_host, is_host, is_no_call, is_plain, ports_beside
from sidecar.inject.wellknown import HEALTH_PROGRAMS, SCHEMES

LOWEST_PORT = 21
"""In a text, ``redis:7`` is an image and not a port. Declared ports may be lower."""

NEAR = 3
"""A ``port:`` so many lines from a ``host:``, at the same indentation, is its port."""


LONG, TOO_LONG = 1200, 8000
"""Of a longer line only the parts around names are read, as many lines: time must not grow with its square. A line that is
too long is a program's output (minified code, data), and is not read at all."""


class Reference(NamedTuple):
    """A callee, the port if the text has one, and the line."""

    callee: str
    port: int | None
    line: int


_N = r"[A-Za-z0-9][\w.-]*"
_NAME = rf"(?:(?<=:-)|(?<=//)|(?<=/dns/)|(?<![\w./-]))({_N})"
_NAME_PORT = re.compile(_NAME + r":(\d{2,5})(?![\w@-]|\.\d)")
_NAME_MORE_PORTS = re.compile(_NAME + r":\d{2,5}:(\d{4,5})(?![\w@-]|\.\d)")
_NAME_SPACE_PORT = re.compile(_NAME + r"(?:\s+-p)?\s+(\d{2,5})(?![\w.:-])")
_NAME_SLASH_PORT = re.compile(rf"/(?:dev|dns[46]?/{_N})/tcp/(?:({_N})/)?(\d{{2,5}})")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s/\"'?#<>\\`;]+)")
_NOT_HOSTS = frozenset({"s3", "s3a", "s3n", "gs", "file", "docker", "oci", "unix", "classpath", "redis+unix"})
_CALLED_BY = re.compile(
    rf"@\(({_N})\)|\b(?:tcp|udp|address)\(({_N})\)|\brabbit@({_N})|\b\w+_pass\s+({_N})\s*;|"
    rf"\breverse_proxy\s+(?:/\S*\s+)?({_N})\s*(?:\{{|$)|"
    rf"\b(?:connect|mysqli|MongoClient|addServer|Redis|StrictRedis)\(\s*[\"']({_N})[\"'](?!\s*,\s*[\"']?\d)|"
    rf"^({_N}),\s*(?:password|ssl|user|abortConnect|defaultDatabase|connectTimeout|allowAdmin|syncTimeout)="
)
_NAME_COMMA_PORT = re.compile(rf"[\"']({_N})[\"']\s*,\s*[\"']?(\d{{2,5}})(?![\w.])")
_KEY = re.compile(
    r"(?i)(Data Source|Network Address|[A-Za-z_$][\w.$-]*)[\"'\])}]*\s*"
    r"(?:=>|:=|\|\||\?\?|(?<=[\"'\])}]):|:(?!//|\d)|=|>|(?<=[\"'])\s*,)\s*"
)
_VALUE = re.compile(r"\(*(?:\"([^\"\n]*)\"|'([^'\n]*)'|\[([^\]\n]*)\]|([\w.:@,/\\-]+))")
_DSN_END = re.compile(r"(?<!,)(?:;|\s\w+=|[\"'])")
_DIRECTIVE = re.compile(rf"^\s*(?:set\s+\$|-\s+)?(\w+)\s+({_N})(?:\s+\w+=\S+|\s+backup|\s+check)*\s*;?\s*$")
_ITEM = re.compile(rf"^\s*(?:-\s*)?[\"']?({_N})[\"']?\s*,?\s*[\])]?$")
_PARENT = re.compile(r"[:=]\s*[\[{(|>]?[+-]?\s*$")
_OPTION = re.compile(rf"(?:^|\s)(-[hH]|--?[\w.-]{{3,}})(?:[= ]\s*|(?<=-h))[\"']?({_N}(?:,{_N})*)(?![\w:.-])")
_PROGRAM = re.compile(
    rf"(?:^|[\s;&|/(])(?:curl|wget|nc|ncat|ping|telnet|wait[-_]?for\S*)(?:\s+-\S+(?:\s+\d+)?)*\s+({_N})(?![\w:.-]|\s+\d)"
)
_IMAGE_LINE = re.compile(r"(?i)^\s*-?\s*[\"']?(?:image|from)\b")
_COMMENT_LINE = re.compile(r"^\s*(?:#|//|;|--\s|\*\s|REM\s)")
_NOT_A_CALL = re.compile(
    r"(?i)(?:^|(?<=[;{]))\s*(?:server_name|proxy_set_header|add_header|more_set_headers|proxy_redirect|return\s+30\d|rewrite|"
    r"valid_referers|ServerName|ServerAlias|Redirect(?:Match)?)\s[^;\n]*|"
    r"^.*(?:Access-Control-Allow|Content-Security-Policy).*|"
    r"^\s*(?:(?:use|default)_backend\s.*|(?:backend|frontend|listen)\s+\S+\s*$)"
)
_COMMENTS = re.compile(
    r"(?:(?<=\s)|^)/\*(?=[\s*]|$).*?\*/|<!--.*?-->|^[ \t]*[rbuRBU]{0,2}(\"\"\"|''').*?\1", re.MULTILINE | re.DOTALL
)
_COMMENT_END = re.compile(r"\s(?:#|//).*$", re.MULTILINE)
_USER = re.compile(r"://[^\s/\"'<>]*@")
_REPLICA_SET = re.compile(r"(--configdb[= ]|--host[= ]|addShard\(\s*[\"'])[\w-]+/")
_MEMBERS = re.compile(r"\brs\.(?:initiate|add|reconfig)\((?:[^()]|\([^()]*\))*\)")
_BRACES = re.compile(r"([^\s\"'={},]*)\{(\d+)\.{2,3}(\d+)\}([^\s\"',]*)")
_IN_WORDS = ascii_letters + digits + "_.:/@-"
_RANGE = re.compile(r"\{\d+\.{2,3}\d+\}")
_VARIABLE = re.compile(r"\$(?:\{(?:env:|ENV:)?(\w+)(?::?[-=?][^}]*|:[^}]*)?\}|(\w+))")
_DOCKER = re.compile(r"\bdocker\s+(?:image\s+)?(?:run|pull|push|tag|build|save|load)\b[^;&|\n]*")
_OWN = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]|\$\{?HOSTNAME\}?)[: ](\d{2,5})(?!\d)")
_OWN_URL = re.compile(r"(https?)://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?![\w:.-])")
_OWN_OPTION = re.compile(
    r"(?:--(?:(?:https?|listen|server|web|rpc|grpc|api|ws|ui|admin|authrpc|metrics)[.-])?port|--bind|--listen|-b|-c port|"
    r"postgres -p)[= ](?::|\*:)?(\d{2,5})(?![\d.:])|"
    r"--?(?:[\w.-]*[.-])?(?:socket|https?|addr|address|bind|listen|listener)[= ](?::|\*:)(\d{2,5})(?![\d.:])"
)
_OWN_VARIABLE = re.compile(r"(?:SERVER_|HTTP_|APP_|LISTEN_|NODE_|GRPC_|WEB_)?PORT|ASPNETCORE_HTTP_PORTS")
_OWN_ADDRESS = re.compile(r"(?:^|//|,)(?:\+|\*|\[::\]|0\.0\.0\.0)?:(\d{2,5})(?![\d.:])")


def in_text(
    text: str,
    names: Mapping[str, str],
    *,
    words: bool = False,
    certain: bool = False,
    key: str = "",
    variables: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> Iterator[Reference]:
    """``name:port`` and URLs, anywhere, and a bare name in quotes as the value of a host-like key; with ``words``, for
    configuration, also one without quotes.

    ``names`` maps each name that the service can call to the callee. ``certain``: the text is a program's, where fewer keys
    say "host". ``key`` is the one that the whole text stands under, ``variables`` are those of the service. ``hidden`` are
    names that this configuration gives to something of its own."""
    text = _plain(text, variables or {})
    present = {name: callee for name, callee in names.items() if name in text or _has_discovery(text)}
    if not present:
        return
    whole_words = "|".join(re.escape(name) for name in present)
    pattern = re.compile(
        rf"(?:(?<=:-)|(?<=-h)|(?<![\w-]))(?:{whole_words})(?![\w-])", re.IGNORECASE if _has_discovery(text) else 0
    )
    lines = text.split("\n")
    says_host = is_certain_host if certain else is_host
    number = end = 0
    for found in pattern.finditer(text):
        if found.start() < end:
            continue  # on the line that was read last
        number += text.count("\n", end, found.start())
        line = lines[number]
        end = text.rfind("\n", 0, found.start()) + 1 + len(line)
        if len(line) > TOO_LONG or _IMAGE_LINE.match(line) or _COMMENT_LINE.match(line):
            continue
        if len(line) > LONG:
            for part in _around(pattern, line):
                for it in _in_line([part], 0, present, words, says_host, key, hidden):
                    yield it._replace(line=number + 1)
            continue
        lines[number] = _NOT_A_CALL.sub("", line)
        yield from _in_line(lines, number, present, words, says_host, key, hidden)


def _around(names: re.Pattern[str], line: str) -> Iterator[str]:
    """The parts of a long line that are around a name. They begin and end with whole words."""
    end = 0
    for found in names.finditer(line):
        if found.start() < end - LONG // 8:
            continue  # in the last part, and what follows it too
        start, end = max(0, found.start() - LONG // 4), found.end() + LONG // 4
        part = line[start:end].lstrip(_IN_WORDS) if start else line[:end]
        yield part.rstrip(_IN_WORDS) if end < len(line) else part


def _in_line(
    lines: list[str],
    number: int,
    names: Mapping[str, str],
    words: bool,
    says_host: Callable[[str], bool],
    outer: str,
    hidden: Collection[str],
) -> Iterator[Reference]:
    line, here = lines[number], number + 1
    keys = [(match.end(), match[1]) for match in _KEY.finditer(line)]

    def key_at(place: int) -> str:
        """The key that this place in the line stands under."""
        inside = [key for end, key in keys if end <= place]
        return inside[-1] if inside else _parent(lines, number) or outer

    for pattern in (_NAME_PORT, _NAME_MORE_PORTS, _NAME_COMMA_PORT):
        for match in pattern.finditer(line):
            key = key_at(match.start(1))
            if not is_no_call(key) and not is_plain(key):
                yield from _reference(names, match[1], int(match[2]), here)
    for match in _URL.finditer(line):
        scheme = match[1].lower()
        if scheme in _NOT_HOSTS or is_no_call(key_at(match.start())):
            continue
        port = next((SCHEMES[part] for part in scheme.split("+") if part in SCHEMES), None)
        for host in match[2].split(","):
            name = host.rpartition("@")[2].rstrip("].)}")
            if name not in hidden:
                yield from _reference(names, name.lower() if scheme == "lb" else name, port, here)
    for match in _CALLED_BY.finditer(line):
        name = match[match.lastindex or 0]
        if name not in hidden and not is_no_call(key_at(match.start())):
            yield from _reference(names, name, None, here)
    for match in _NAME_SLASH_PORT.finditer(line):
        name = match[1] or match[0].split("/")[2]
        yield from _reference(names, name, int(match[2]), here)
    for end, key in keys:
        if says_host(key) and not is_no_call(key):
            found = _VALUE.match(line, end)
            if found is not None and (words or found[4] is None or _is_dsn(line, end, found.end())):
                yield from _hosts(_items(found), names, here, _ports_near(lines, number, key))
    for pattern in (_DIRECTIVE, _ITEM) if words else ():
        bare = pattern.match(line)
        if bare is not None:
            key = bare[1] if pattern is _DIRECTIVE else _parent(lines, number)
            if says_host(key) and not is_no_call(key):
                ports = _ports_near(lines, number, key) if pattern is _DIRECTIVE else ()
                yield from _hosts([bare[bare.lastindex or 1]], names, here, ports)


def _is_dsn(line: str, start: int, end: int) -> bool:
    """Whether a value without quotes is one of a connection string: ``mysql:host=db;dbname=x``."""
    return line[start - 1] == "=" and _DSN_END.match(line, end) is not None


def in_command(text: str, names: Mapping[str, str], variables: Mapping[str, str] | None = None) -> Iterator[Reference]:
    """The references of any text, and those of command lines: ``nc -z db 5432``, ``--host=db``."""
    text = _DOCKER.sub("docker", _plain(text, variables or {}))
    if not any(name in text for name in names):
        return
    yield from in_text(re.sub(r"\\\s*\n", " ", text), names, words=True)
    text = " ".join(line for line in text.splitlines() if not _COMMENT_LINE.match(line) and len(line) <= TOO_LONG)
    for match in _NAME_SPACE_PORT.finditer(text):
        yield from _reference(names, match[1], int(match[2]), 1)
    for match in _PROGRAM.finditer(text):
        yield from _reference(names, match[1], None, 1)
    for match in _OPTION.finditer(text):
        if match[1] in {"-h", "-H"} or (is_host(match[1]) and not is_no_call(match[1])):
            yield from _hosts(match[2].split(","), names, 1, ())


def in_environment(environment: Mapping[str, str], names: Mapping[str, str]) -> Iterator[tuple[str, Reference]]:
    """Pairs of variable and reference: ``name:port``, URLs and connection strings in any variable, a bare name only under a
    host-like key or one with its own name, whose port may be in a variable of its own (``DB_HOST`` and ``DB_PORT``)."""
    for key, value in environment.items():
        if is_no_call(key):
            continue
        for reference in in_text(value, names, words=True, key=key, variables=environment):
            yield key, reference
        if (is_host(key) or is_called_after(key, value)) and "\n" not in value:
            items = [it for it in re.split(r"[\s,;|]+", _plain(value, environment)) if "=" not in it]
            ports = tuple(ports_beside(key, environment))
            for reference in _hosts(items, names, 1, ports):
                yield key, reference


def _plain(text: str, variables: Mapping[str, str]) -> str:
    """The text without comments, users of URLs, and members that a replica set is told; with what is written short written
    out. Lines keep their numbers."""
    if "${" in text or "$" in text:
        text = _VARIABLE.sub(lambda match: _value(match, variables), text)
    if "*/" in text or "-->" in text or '"""' in text or "'''" in text:
        text = _COMMENTS.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = _COMMENT_END.sub("", text)
    if "@" in text:
        text = _USER.sub("://", text)
    if "rs." in text:
        text = _MEMBERS.sub(lambda match: "\n" * match[0].count("\n"), text)
    if "/" in text:
        text = _REPLICA_SET.sub(r"\1", text)
    return _BRACES.sub(_written_out, text) if _RANGE.search(text) else text


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    value = variables.get(match[1] or match[2])
    return match[0] if value is None or "$" in value else value.replace("\n", " ")


def _written_out(match: re.Match[str]) -> str:
    first, last = int(match[2]), int(match[3])
    width = len(match[2]) if match[2].startswith("0") else 0
    rest = _RANGE.sub("", match[4])
    return " ".join(f"{match[1]}{number:0{width}}{rest}" for number in range(first, min(last, first + 63) + 1))


def _has_discovery(text: str) -> bool:
    """Whether names may be there in another case: those that a gateway looks up in a registry."""
    return "lb://" in text


def _parent(lines: list[str], number: int) -> str:
    """The key of the block that a line is in: of a list's item, or of a value on a line of its own."""
    indentation = _indentation(lines[number])
    is_item = lines[number].lstrip().startswith("-")
    for index in range(number - 1, max(-1, number - 40), -1):
        line = lines[index]
        if line.strip() and (_indentation(line) < indentation or (is_item and _indentation(line) == indentation)):
            if line.lstrip().startswith("-") and _indentation(line) == indentation:
                continue
            found = _KEY.findall(line) if _PARENT.search(line) else []
            return str(found[-1]) if found else ""
    return ""


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _column(line: str) -> int:
    """Where the first word stands: ``- host`` stands where ``port`` does, below it."""
    return len(line) - len(line.lstrip(" \t-"))


def _ports_near(lines: list[str], number: int, key: str) -> tuple[int, ...]:
    """The ports that keys beside this one hold, on its line, or else on lines near it."""
    found = tuple(ports_beside(key, _pairs(lines[number]), near=True))
    if found:
        return found
    around = dict(_pairs(lines[number]))
    for step in (-1, 1):
        for index in range(number + step, number + step * (NEAR + 1), step):
            line = lines[index] if 0 <= index < len(lines) else ""
            starts = line if step > 0 else lines[index + 1]
            apart = line.startswith("[") or starts.lstrip().startswith("-")
            if apart or not line.strip() or _column(line) < _column(lines[number]):
                break
            if _column(line) == _column(lines[number]):
                around |= {it: value for it, value in _pairs(line).items() if it not in around}
    return tuple(ports_beside(key, around, near=True))


@lru_cache(maxsize=64)
def _pairs(line: str) -> Mapping[str, str]:
    found = {}
    for match in _KEY.finditer(line):
        value = _VALUE.match(line, match.end())
        if value is not None:
            found[match[1]] = str(value[value.lastindex or 0]).strip(",")
    directive = _DIRECTIVE.match(line)
    if directive is not None:
        found.setdefault(directive[1], directive[2])
    return found


def _items(value: re.Match[str]) -> list[str]:
    """The hosts of a value: one, or several with commas between."""
    return [item.strip().strip("\"'") for item in re.split(r"[,;|]", str(value[value.lastindex or 0]))]


def _hosts(items: list[str], names: Mapping[str, str], line: int, ports: Collection[int]) -> Iterator[Reference]:
    """Bare names among the items, each with the ports that others say, or with one that follows: ``db,1433``."""
    for item, after in zip(items, [*items[1:], ""], strict=False):
        name = item.strip("\"'[](){}").removeprefix("tcp:").rpartition("@")[2].partition("\\")[0]
        follows = (int(after),) if after.isdigit() and len(after) > 2 else ()
        for port in follows or tuple(ports) or (None,):
            yield from _reference(names, name, port, line)


def own_ports(command: str) -> tuple[int, ...]:
    """The ports that a service listens on according to its own command."""
    found = [int(match[match.lastindex or 1]) for pattern in (_OWN, _OWN_OPTION) for match in pattern.finditer(command)]
    return _ports(found)


def ports_in_environment(environment: Mapping[str, str], own: Mapping[str, str]) -> tuple[int, ...]:
    """The ports that a service listens on according to its own variables: ``PORT=3000``, ``:8080``, and those that it is to
    be called at by its own name. ``own`` are its names."""
    found = []
    for key, value in environment.items():
        if _OWN_VARIABLE.fullmatch(key) and value.isdigit():
            found.append(int(value))
        found += [int(match[1]) for match in _OWN_ADDRESS.finditer(value)]
        found += [
            it.port
            for it in in_text(value, own, variables=environment)
            if it.port is not None and f":{it.port}" in value
        ]
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
            variables |= _assigned(words[1:])
        elif keyword == "EXPOSE":
            for word in words[1:]:
                number, _, protocol = _expanded(word, variables).partition("/")
                if number.isdigit() and protocol.lower() in {"", "tcp"}:
                    ports.append(int(number))
    return tuple(port for port in dict.fromkeys(ports) if 0 < port < 65536), base


def variables_of(dockerfile: str) -> dict[str, str]:
    """What a Dockerfile sets for the service, and for its build if nothing else does: ``ENV`` and ``ARG``."""
    found: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        words = line.split()
        if len(words) > 1 and words[0].upper() in {"ENV", "ARG"}:
            found |= _assigned(words[1:])
    return found


def _assigned(words: list[str]) -> dict[str, str]:
    """``ENV a=b c=d``, and ``ENV a b``."""
    pairs = [f"{words[0]}={words[1]}"] if len(words) == 2 and "=" not in words[0] else words
    return {key: value.strip("\"'") for key, equals, value in (pair.partition("=") for pair in pairs) if equals}


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    return re.sub(
        r"\$(?:\{(?:env:|ENV:)?(\w+)(?::?-([^}]*))?\}|(\w+))",
        lambda match: variables.get(match[1] or match[3], match[2] or ""),
        word,
    )


def _reference(names: Mapping[str, str], name: str, port: int | None, line: int) -> Iterator[Reference]:
    callee = names.get(name) or names.get(name.rstrip("."))
    if callee is not None and (port is None or LOWEST_PORT <= port <= 65535):
        yield Reference(callee, port, line)


def _ports(found: list[int]) -> tuple[int, ...]:
    return tuple(port for port in dict.fromkeys(found) if LOWEST_PORT <= port <= 65535)
