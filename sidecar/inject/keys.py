"""What a key says of its value: that it is a host, the port of a host, or no call at all. Pure.

A key is whatever stands before a value: a variable (``DB_HOST_1``, ``PGHOST``), a property (``spring.redis.host``), a field
(``dbHost``), an option (``--db-host``), a word of a connection string (``Data Source``). It is read as words, so one rule
serves all of them. Keys decide about bare names: ``DB_HOST=db`` is a call, ``DB_NAME=db`` is none. Some keys hold addresses
of callers and not of callees, such as ``ALLOWED_HOSTS`` and ``REDIRECT_URI``: nothing under them is a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CERTAIN = re.compile(r".*host(?:name)?s?|.*servers?|.*addr(?:ess)?(?:es)?|.*ur[li]s?|.*endpoints?|.*brokers?|dsn")
_HOST = re.compile(
    rf"{_CERTAIN.pattern}|nodes?|peers?|seeds?|upstreams?|backends?|targets?|remotes?|bootstrap|join|members|instances|quorum|voters|ensemble|contactpoints?|"
    r"masters?|replicas?|primary|leader|slaves?|gateways?|proxy|proxies|collector|destination|fqdn|datasource|wait|"
    r"(?!.*(?:[sz]|sk|sh|ch|cl|gr|scr|str|tr|qu|t)ip$)\w*ip"
)
_NOT_LAST = _set(
    """
    name names user users username login password passwd pass pwd secret token key keys auth credentials db
    database schema type kind driver engine vendor dialect adapter provider mode env environment role roles id
    ids label labels tag tags image images version prefix suffix path port ports protocol scheme realm bucket
    topic topics queue queues group set index client profile profiles timeout enabled enable ssl tls level
    plugin plugins format class table collection catalog keyspace method header headers cert ca file dir title
    description alias count size limit strategy policy admin root guest default
    """
)
"""A key that ends so is no host, whatever else it says: ``REDIS_HOST_PASSWORD``, ``NODE_NAME``."""

_KINDS_OF_TARGET = _set("build cargo deploy docker make stage test")
"""``BUILD_TARGET=web`` names a stage."""

_KINDS_OF_BACKEND = _set(
    """
    cache session sessions queue result results storage store message messages auth email mail vector search db
    database log logging channel lock registry secrets state
    """
)
"""``CACHE_BACKEND=redis`` names a driver."""

_NO_CALL = _set(
    """
    allow allows allowed allowlist whitelist whitelisted trust trusted origin origins cors csrf csp referer
    referers referrer redirect redirects callback callbacks logout audience audiences aud san sans cn cert certs
    certificate certificates subject advertised advertise virtual letsencrypt noproxy nonproxy canonical deny denied
    denylist blacklist blocklist blocked ban banned exclude excluded ignore ignored bypass cookie roothost
    """
)
"""Who may come, who is sent elsewhere, and by which names a service goes: no service is called."""

_PLAIN = _set(
    """
    image images base tag tags version user users username login password passwd pass pwd secret token credentials
    auth volume volumes
    """
)
"""Under these ``redis:6379`` is an image and its tag, or a user and a password."""

_OUTSIDE = _set(
    """
    external exposed expose published publish public forward forwarded outside
    """
)
"""``DB_EXTERNAL_PORT`` is a port of the machine."""


@lru_cache(maxsize=4096)
def words(key: str) -> tuple[str, ...]:
    """``DB_HOST_1``, ``dbHost`` and ``db.host`` as ``db``, ``host`` and, of the first, ``1``."""
    return tuple(word.lower() for word in _WORD.findall(key))


@lru_cache(maxsize=4096)
def is_host(key: str) -> bool:
    """Whether a bare name under this key is a host."""
    return _host_at(words(key)) is not None


@lru_cache(maxsize=4096)
def is_certain_host(key: str) -> bool:
    """Whether it is one in a program too, where ``target: "web"`` is none."""
    found, at = words(key), _host_at(words(key))
    return at is not None and any(_CERTAIN.fullmatch(word) for word in found[at:])


@lru_cache(maxsize=4096)
def is_called_after(key: str, name: str) -> bool:
    """Whether a key has the name of the very host that it holds: ``RABBITMQ=rabbitmq-1``, unlike ``CACHE_STORE=redis``."""
    last = _without_number(words(key))[0][-1:]
    return bool(last) and len(last[0]) > 2 and last[0] not in _NOT_LAST and name.lower().startswith(last[0])


@lru_cache(maxsize=4096)
def is_no_call(key: str) -> bool:
    """Whether hosts under this key are not called."""
    found = words(key)
    joined = {one + other for one, other in pairwise(found)}
    return not _NO_CALL.isdisjoint({*found, *joined})


@lru_cache(maxsize=4096)
def is_plain(key: str) -> bool:
    """Whether ``name:number`` under this key is no host with a port."""
    found = _without_number(words(key))[0]
    return bool(found) and found[-1] in _PLAIN


def ports_beside(key: str, others: Mapping[str, str], *, near: bool = False) -> Iterator[int]:
    """The ports of the host under ``key`` that other keys hold: ``DB_PORT`` of ``DB_HOST``, each ``MINIO_…_PORT`` of
    ``MINIO_HOST``. ``near``: the keys stand together, so that a mere ``port`` belongs to any host."""
    found, number = _without_number(words(key))
    stem = _stem(found)
    stems = {_stem(words(other)) for other in others if is_host(other)} | {stem}
    for other, value in others.items():
        of_port, its_number = _without_number(words(other))
        if not of_port or not value.isdigit() or its_number not in {"", number}:
            continue
        if len(of_port) > 1 and (of_port[-1] in {"value", "number"} or of_port[-2] == "port"):
            of_port = of_port[:-1]  # PORT_GRPC
        if not of_port[-1].endswith("port") or not _OUTSIDE.isdisjoint(words(other)) or is_no_call(other):
            continue
        start = (*of_port[:-1], *filter(None, [of_port[-1].removesuffix("port")]))
        closest = max((it for it in stems if start[: len(it)] == it), key=len, default=None)
        if closest == stem and (stem or (near and not start) or (words(key), of_port) == (("host",), ("port",))):
            yield int(value)


def _host_at(found: tuple[str, ...]) -> int | None:
    """Where the words begin that say "host"; None if none of them does."""
    found, _ = _without_number(found)
    if not found or (found[-1] in _NOT_LAST and found[-2:] != ("host", "name")):
        return None
    for index in range(len(found) - 1, -1, -1):
        if _says_host(found, index):
            while index and _says_host(found, index - 1):
                index -= 1
            return index
    return None


def _says_host(found: tuple[str, ...], index: int) -> bool:
    word, before = found[index], found[:index]
    if word in {"string", "strings", "source"}:
        return bool(before) and before[-1] in {"connection", "connect", "conn", "data"}
    if word in {"service", "services"}:
        return bool(before) and before[0] not in {"dd", "otel", "ecs"}
    if word in {"target", "targets"} and before and before[-1] in _KINDS_OF_TARGET:
        return False
    if word in {"mysql", "postgres"}:
        return before[-1:] == ("db",) and found[index + 1 :] == ()  # REDMINE_DB_MYSQL
    if word in {"backend", "backends"}:
        return not before or before[-1] not in _KINDS_OF_BACKEND
    if word in {"connection", "connect"}:
        return found[index + 1 : index + 2] in {("string",), ("strings",)} or (word == "connect" and bool(before))
    if word == "data":
        return found[index + 1 : index + 2] == ("source",)
    return _HOST.fullmatch(word) is not None


def _stem(found: tuple[str, ...]) -> tuple[str, ...]:
    """The words before "host", and what is fused with it: ``pg`` of ``PGHOST``."""
    at = _host_at(found)
    if not at:  # all of it says "host", as in TARGET_HOST and its TARGET_PORT
        at = max((index for index in range(len(found)) if _says_host(found, index)), default=0)
    fused = re.sub(r"(?:host(?:name)?s?|servers?|addr(?:ess)?(?:es)?|ur[li]s?|endpoints?|brokers?)$", "", found[at])
    return (*found[:at], *([fused] if fused and fused != found[at] else []))


def _without_number(found: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """The words, and the number at their end: ``DB_HOST_1``."""
    left = tuple(found)
    return (left[:-1], left[-1]) if left and left[-1].isdigit() else (left, "")
