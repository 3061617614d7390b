"""Who is named in a text, and what only looks so."""

from __future__ import annotations

import pytest

from sidecar.inject.references import (
    exposed_ports,
    health_ports,
    in_command,
    in_environment,
    in_text,
    own_ports,
    ports_in_environment,
)

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
    "text", ["host = db", "host: db", "ENDPOINT=db", "set $backend db;", "<host>db</host>", "Host db"]
)
def test_a_bare_name_in_configuration(text: str) -> None:
    assert found(text, words=True) == [("db", None)]
    assert found(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "'host' => 'db'", "define('DB_HOST', 'db');", '"server": "db"', "os.getenv('DB_HOST', 'db')", "hosts = ['db']",
        "process.env.DB_HOST || 'db'", "Redis(host='db')", "new PDO('mysql:host=db;dbname=api')", "new mysqli('db', 'api')",
        "pg_connect('host=db user=api')", "sock.connect('db')",
    ],
)  # fmt: skip
def test_a_quoted_name_in_any_text(text: str) -> None:
    assert found(text, words=True) == [("db", None)]
    assert found(text) == [("db", None)]


@pytest.mark.parametrize("text", ["addServer('db', 11211)", "connect(('db', 11211))", "new Redis('db', '11211')"])
def test_a_quoted_name_and_a_port(text: str) -> None:
    assert found(text) == [("db", 11211)]


@pytest.mark.parametrize("text", ["target: 'db'", "connect(db)", "f(host=db, x=1)", "['db', 'x']", "('db', 1)"])
def test_the_twin_what_a_program_says_of_itself(text: str) -> None:
    assert [(it.callee, it.port) for it in in_text(text, NAMES, certain=True)] == []


@pytest.mark.parametrize("text", ["server_name db;", "db = 1", "user: db", "host: db.example.com", "localhost: 1"])
def test_the_twin_a_word_that_is_no_host(text: str) -> None:
    assert found(text, words=True) == []


def test_of_a_long_line_the_parts_around_names_are_read() -> None:
    filler = "x=1; " * 300
    long = f"{filler}a-db:23;{filler}host='db'; api; {filler}api:81"
    assert found(long) == [("db", None), ("api", 81)]
    assert {it.line for it in in_text(f"\n{long}", NAMES)} == {2}
    assert found(filler * 6 + "api:81") == []


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
    ("value", "expected"),
    [
        ("Server=db;Port=5432;Database=api", {("db", 5432)}),
        ("Data Source=db,1433;Initial Catalog=api", {("db", 1433)}),
        ("Server=tcp:db,1433;User Id=api", {("db", 1433)}),
        ("Server=db\\\\EXPRESS;User Id=api", {("db", None)}),
        ("host=db user=api port=5432 dbname=api", {("db", 5432)}),
        ("api:secret@tcp(db)/x", {("db", None)}),
        ("api:secret@tcp(db:3306)/x", {("db", 3306)}),
        ("db,password=api,ssl=False", {("db", None)}),
        ("db:6379,password=api", {("db", 6379)}),
        ('{"host":"db","port":5432,"user":"api"}', {("db", 5432)}),
        ("jdbc:sqlserver://db;databaseName=api", {("db", 1433)}),
        ("jdbc:oracle:thin:@db:1521/api", {("db", 1521)}),
        ("amqp://api:1234!@db//", {("db", 5672)}),
        ("mongodb://db,redis:27018/api?replicaSet=r", {("db", 27017), ("redis", 27018)}),
        ("db:9092,redis:9093", {("db", 9092), ("redis", 9093)}),
        ("1@db:9093", {("db", 9093)}),
        ("server.1=db:2888:3888;2181", {("db", 2888), ("db", 3888)}),
        ("-Dspring.redis.host=redis -Ddb=api", {("redis", None)}),
        ("db+postgresql://api:x@db/api", {("db", 5432)}),
        ("rabbit@db", {("db", None)}),
        ("exporter:x@(db)/", {("db", None)}),
        ("http://$WHERE:${AT}/x", {("api", 81)}),
        ("lb://MY-API", {("my-api", None)}),
        ("jobmanager.rpc.address: db\nother: api", {("db", None)}),
    ],
)
def test_connection_strings(value: str, expected: set[tuple[str, int | None]]) -> None:
    environment = {"X": value, "WHERE": "api", "AT": "81"}
    assert {(it.callee, it.port) for key, it in in_environment(environment, NAMES) if key == "X"} == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"ALLOWED_HOSTS": "api,db"}, {"NO_PROXY": "api"}, {"CORS_ORIGIN": "http://api:80"}, {"REDIRECT_URI": "http://api/x"},
        {"X_IMAGE": "redis:6379"}, {"X": "registry.test/api:2024"}, {"X": "team/redis:6379"}, {"BASIC_AUTH": "api:1234"},
        {"X": "s3://redis/x"}, {"CACHE_BACKEND": "redis"}, {"NODE_NAME": "db"}, {"DD_SERVICE": "api"}, {"X": "user=db"},
        {"X": '{"allowedOrigins": ["http://api:80"], "redirectUris": ["http://api/x"]}'}, {"X": "host=other user=db"},
        {"X": "amqp://redis:6379@elsewhere"}, {"X": "x  # db:5432"},
        {"SERVER": "a=b"}, {"HOST": ""}, {"API_URL": "api/v1"}, {"API_URL": "/api"}, {"NODE_BASE": "redis:6379"},
        {"X": "f() //db:5432"}, {"X": "y #db:5432"},
    ],
)  # fmt: skip
def test_the_twins_of_variables(environment: dict[str, str]) -> None:
    assert list(in_environment(environment, NAMES)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  hosts:\n    - db\n    - api\n", {("db", None), ("api", None)}),
        ("a:\n  allowed_hosts:\n    - db\n  hosts: []\n", set()),
        ('"redirectUris": [\n  "http://api:80/*"\n],', set()),
        ("- host: db\n  port: 5432\n- host: redis\n  port: 6380\n", {("db", 5432), ("redis", 6380)}),
        ("db:\n  host: db\n  port: 5432\nredis:\n  host: redis\n", {("db", 5432), ("redis", None)}),
        ("<host>db</host>\n<port>2181</port>", {("db", 2181)}),
        ("[OUTPUT]\n  Host db\n  Port 9200", {("db", 9200)}),
        ("upstream api { server db:81; }\nproxy_pass http://api;\nfastcgi_pass redis;", {("db", 81), ("redis", None)}),
        ("fastcgi_pass api;", set()),
        ("default_backend api\nbackend api\n  server one db:81 check", {("db", 81)}),
        ("a:\n    host: db\n      port: 1234\n", {("db", None)}),
        ("a:\n  host: db\n  tls:\n    on: yes\n  port: 1234\n", {("db", 1234)}),
        ("server_name api;\nproxy_set_header Host api:81;\nreturn 301 http://api;", set()),
        ('a: b  # db:5432\n/* db:5432\n db:5432 */\n<!-- db:5432 -->\n"""db:5432"""', set()),
        ("http://db{1...3}:9000/data{1...2}", set()),
        ("http://es{01..02}:9000", {("elastic", 9000)}),
        ("location /api/* { db:81 }", {("db", 81)}),
        ("reverse_proxy db\nreverse_proxy /x/* redis {", {("db", None), ("redis", None)}),
        ("server db max_fails=3 backup;", {("db", None)}),
    ],
)
def test_configuration(text: str, expected: set[tuple[str, int | None]]) -> None:
    assert {(it.callee, it.port) for it in in_text(text, NAMES, words=True, hidden={"api"})} == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("start --join=db,api", {("db", None), ("api", None)}),
        ("mongos --configdb rs/db:27019,api:27019", {("db", 27019), ("api", 27019)}),
        ("agent -retry-join db", {("db", None)}),
        ("mysql -hdb", {("db", None)}),
        ("./wait-for.sh db -- run", {("db", None)}),
        ("until curl -s db/x; do sleep 1; done", {("db", None)}),
        ("nc -z -w 3 db 5432", {("db", 5432)}),
        ("bash -c '</dev/tcp/db/5432'", {("db", 5432)}),
        ("run --peer /dns4/db/tcp/4001", {("db", 4001)}),
        ("run $DB:5432", {("db", 5432)}),
        ("mongosh --host db --eval \"rs.initiate({members: [{host: 'api:27017'}]})\"", {("db", None)}),
        ("docker run redis:6379; nc db 5432", {("db", 5432)}),
        ("# db:5432\nrun api:81", {("api", 81)}),
        ("run --allowed-hosts=db", set()),
    ],
)
def test_command_lines(command: str, expected: set[tuple[str, int | None]]) -> None:
    assert {(it.callee, it.port) for it in in_command(command, NAMES, {"DB": "db"})} == expected


@pytest.mark.parametrize(
    ("environment", "ports"),
    [
        ({"PORT": "3000"}, (3000,)),
        ({"ASPNETCORE_URLS": "http://+:8080"}, (8080,)),
        ({"LISTEN": ":9000"}, (9000,)),
        ({"ADVERTISED": "IN://me:29092,OUT://localhost:9092"}, (29092,)),
        ({"DB_PORT": "5432", "URL": "http://db:80", "X": "http://me"}, ()),
    ],
)
def test_what_variables_say_of_their_own_service(environment: dict[str, str], ports: tuple[int, ...]) -> None:
    assert ports_in_environment(environment, {"me": "me"}) == ports


@pytest.mark.parametrize(
    ("command", "ports"),
    [
        ("gunicorn -b 0.0.0.0:8000", (8000,)),
        ("uvicorn --port 8001", (8001,)),
        ("serve --bind=:9000", (9000,)),
        ("postgres -p 5433", (5433,)),
        ("uwsgi --socket=:8000", (8000,)),
        ("x --web.listen-address=:9115", (9115,)),
        ("geth --http.port 8545 --authrpc.port=8551", (8545, 8551)),
        ("x --redis-port 6379 --peer.address=db:81 --socket=/run/x --http 8000", ()),
        ("mkdir -p 5433", ()),
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
