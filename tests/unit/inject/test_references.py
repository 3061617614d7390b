"""Who is named in a text, and what only looks so."""

from __future__ import annotations

import pytest

from sidecar.inject.references import exposed_ports, health_ports, in_command, in_environment, in_text, own_ports

NAMES = {"db": "db", "api": "api", "es01": "elastic", "my-api": "my-api", "redis": "redis", "shop.test": "web"}


def found(text: str, *, words: bool = False) -> list[tuple[str, int | None]]:
    return list(dict.fromkeys((it.callee, it.port) for it in in_text(text, NAMES, words=words)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db:5432", [("db", 5432)]),
        ("postgres://u:p@db:5432/x", [("db", 5432)]),
        ("postgres://u:p@db/x", [("db", 5432)]),
        ("postgresql+psycopg://db/x", [("db", 5432)]),
        ("jdbc:postgresql://db/x", [("db", 5432)]),
        ("http://api", [("api", 80)]),
        ("http://api.", [("api", 80)]),
        ("https://api/v1", [("api", 443)]),
        ("unknown://api", [("api", None)]),
        ("hosts => ['es01:9200']", [("elastic", 9200)]),
        ("server api:8080;", [("api", 8080)]),
        ("${DB:-db:5432}", [("db", 5432)]),
        ("db:5432,api:80", [("db", 5432), ("api", 80)]),
        ("shop.test:443", [("web", 443)]),
    ],
)
def test_a_name_with_a_port(text: str, expected: list[tuple[str, int | None]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "redis:7", "redis:7-alpine", "redis:7.2", "redis:70000", "db:5432@x", "image: redis:6379", "FROM redis:6379",
        "xdb:5432", "my-db:5432", "db.example.com:5432", "db", "# db:5432", "// db:5432", "http://api.example.com",
        "db:5432x", "db-5432",
    ],
)  # fmt: skip
def test_what_only_looks_so(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text", ["host = db", "host: db", "'host' => 'db'", "define('DB_HOST', 'db');", '"server": "db"', "ENDPOINT=db"]
)
def test_a_bare_name_in_configuration(text: str) -> None:
    assert found(text, words=True) == [("db", None)]
    assert found(text) == []


@pytest.mark.parametrize("text", ["server_name db;", "db = 1", "user: db", "host: db.example.com", "localhost: 1"])
def test_the_twin_a_word_that_is_no_host(text: str) -> None:
    assert found(text, words=True) == []


def test_lines_are_told() -> None:
    assert [it.line for it in in_text("\n\ndb:5432", NAMES)] == [3]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("wait-for db:5432 -- run", ("db", 5432)),
        ("nc -z db 5432", ("db", 5432)),
        ("psql -h db -U x", ("db", None)),
        ("mysql --host=db", ("db", None)),
        ("pg_isready -h db -p 5433", ("db", 5433)),
    ],
)
def test_commands(command: str, expected: tuple[str, int | None]) -> None:
    assert expected in {(it.callee, it.port) for it in in_command(command, NAMES)}


@pytest.mark.parametrize("command", ["run db", "db", "echo -h", "-h localhost"])
def test_the_twin_commands_that_call_nobody(command: str) -> None:
    assert list(in_command(command, NAMES)) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DB_HOST": "db"}, {("DB_HOST", "db", None)}),
        ({"DB_HOST": "db", "DB_PORT": "3307"}, {("DB_HOST", "db", 3307)}),
        ({"MY_INSTANCES": "db"}, {("MY_INSTANCES", "db", None)}),
        ({"NODES": "db, api"}, {("NODES", "db", None), ("NODES", "api", None)}),
        ({"ANYTHING": "db:5432"}, {("ANYTHING", "db", 5432)}),
        ({"POSTGRES_USER": "db"}, set()),
        ({"DB_PASSWORD": "api"}, set()),
        ({"HOSTILE": "db"}, set()),
    ],
)
def test_variables(environment: dict[str, str], expected: set[tuple[str, str, int | None]]) -> None:
    assert {(key, it.callee, it.port) for key, it in in_environment(environment, NAMES)} == expected


@pytest.mark.parametrize(
    ("command", "ports"),
    [
        ("gunicorn -b 0.0.0.0:8000", (8000,)),
        ("uvicorn --port 8001", (8001,)),
        ("serve --bind=:9000", (9000,)),
        ("x --report 8000", ()),
        ("x", ()),
    ],
)
def test_what_a_command_says_of_itself(command: str, ports: tuple[int, ...]) -> None:
    assert own_ports(command) == ports


@pytest.mark.parametrize(
    ("test", "ports"),
    [
        ("curl -f http://localhost:8080/x", (8080,)),
        ("wget http://127.0.0.1/", (80,)),
        ("curl http://me:9000", (9000,)),
        ("nc -z localhost 9001", (9001,)),
        ("redis-cli -p 6380 ping", (6380,)),
        ("redis-cli ping", (6379,)),
        ("pg_isready -U x", (5432,)),
        ("my-pg_isready", ()),
        ("true", ()),
        ("", ()),
    ],
)
def test_health_checks(test: str, ports: tuple[int, ...]) -> None:
    assert health_ports(test, {"me": "me"}) == ports


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\nEXPOSE 80 443/tcp 53/udp", ((80, 443), "a")),
        ("FROM a AS b\nEXPOSE 1000\nFROM c", ((), "c")),
        ("FROM a AS b\nEXPOSE 1000\nFROM b", ((1000,), "a")),
        ("ARG P=81\nFROM --platform=x a:1\nEXPOSE $P ${Q:-82}", ((81, 82), "a:1")),
        ("FROM a\nENV P 83\nEXPOSE \\\n ${P}", ((83,), "a")),
        ("FROM a\nEXPOSE $UNKNOWN 70000", ((), "a")),
        ("", ((), "")),
    ],
)
def test_dockerfiles(text: str, expected: tuple[tuple[int, ...], str]) -> None:
    assert exposed_ports(text) == expected
