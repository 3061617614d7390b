"""Keys that say "host", keys that only look so, and the port that stands beside."""

from __future__ import annotations

import pytest

from sidecar.inject.keys import is_called_after, is_certain_host, is_host, is_no_call, is_plain, ports_beside, words


def test_words() -> None:
    assert words("DB_HOST_1") == ("db", "host", "1")
    assert words("dbHost") == ("db", "host")
    assert words("spring.redis.host") == ("spring", "redis", "host")
    assert words("ConnectionStrings__Redis") == ("connection", "strings", "redis")


@pytest.mark.parametrize(
    "key",
    [
        "HOST", "DB_HOST", "DBHOST", "PGHOST", "dbHost", "DB_HOST_1", "SEARCH_HOST_NAME", "DB_HOSTNAME", "spring.redis.host",
        "MYSQL_SERVER", "REDIS_ADDR", "API_URL", "apiBaseUrl", "KAFKA_BROKERS", "ES_NODES", "AUTH_SERVICE", "Data Source",
        "ConnectionStrings__Redis", "API_BACKEND", "SQL_DSN", "bootstrap.servers", "DB_HOST_READ", "--db-host",
        "MY_INSTANCES",
        "TARGET", "REDMINE_DB_MYSQL", "RABBITMQ_BROKERIP", "NFVO_IP", "mongoip",
    ],
)  # fmt: skip
def test_a_host(key: str) -> None:
    assert is_host(key)


@pytest.mark.parametrize(
    "key",
    [
        "", "1", "DB_NAME", "POSTGRES_USER", "REDIS_HOST_PASSWORD", "NODE_NAME", "SERVER_NAME", "NODE_ENV", "HOSTILE",
        "SERVICE", "DD_SERVICE", "OTEL_SERVICE_NAME", "CACHE_BACKEND", "DB_CONNECTION", "MESSAGE_STRING", "DB_HOST_PORT",
        "source", "data", "BUILD_TARGET", "DB_MYSQL_X", "MYSQL", "ZIP", "WORKSHIP", "SKIP", "PREFIX_GZIP", "MEMBERSHIP",
    ],
)  # fmt: skip
def test_the_twin_no_host(key: str) -> None:
    assert not is_host(key)


@pytest.mark.parametrize(
    "key",
    [
        "ALLOWED_HOSTS", "CORS_ORIGIN", "NO_PROXY", "no_proxy", "nonProxyHosts", "OAUTH_REDIRECT_URI", "GOOGLE_CALLBACK_URL",
        "redirectUris", "webOrigins", "TRUSTED_PROXIES", "VIRTUAL_HOST", "CSRF_TRUSTED_ORIGINS", "TLS_SAN", "CallBackUrl",
        "MYSQL_ROOT_HOST",
        "IP_WHITE_LIST",
    ],
)  # fmt: skip
def test_no_call(key: str) -> None:
    assert is_no_call(key)


@pytest.mark.parametrize("key", ["HTTP_PROXY", "API_URL", "PROXY_HOST", "NO_REPLY_HOST", "SHALLOW_HOST", "CALL_HOST"])
def test_the_twin_a_call(key: str) -> None:
    assert not is_no_call(key)


@pytest.mark.parametrize(
    ("key", "name"), [("RABBITMQ", "rabbitmq"), ("SHOP_RABBITMQ", "RabbitMQ-1"), ("REDIS_2", "redis-cache")]
)
def test_a_key_that_is_called_after_its_host(key: str, name: str) -> None:
    assert is_called_after(key, name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("CACHE_STORE", "redis"),
        ("POSTGRES_DB", "db"),
        ("DB", "db"),
        ("REDIS_USER", "user"),
        ("", ""),
        ("1", "1"),
        ("X_ADMIN", "admin"),
        ("A", "a"),
    ],
)
def test_the_twin_a_key_of_something_else(key: str, name: str) -> None:
    assert not is_called_after(key, name)


def test_in_a_program() -> None:
    assert is_certain_host("host")
    assert is_certain_host("REDIS_URL")
    assert not is_certain_host("target")
    assert not is_certain_host("REDIS_HOST_PASSWORD")


def test_plain() -> None:
    assert is_plain("SANDBOX_IMAGE")
    assert is_plain("BASIC_AUTH")
    assert not is_plain("IMAGE_PROXY")
    assert not is_plain("")


@pytest.mark.parametrize(
    ("key", "others", "ports"),
    [
        ("DB_HOST", {"DB_PORT": "1"}, [1]),
        ("PGHOST", {"PGPORT": "1"}, [1]),
        ("dbHost", {"dbPort": "1"}, [1]),
        ("DB_HOST_1", {"DB_PORT_1": "1", "DB_PORT_2": "2"}, [1]),
        ("SEARCH_HOST_NAME", {"SEARCH_PORT": "1"}, [1]),
        ("spring.redis.host", {"spring.redis.port": "1"}, [1]),
        ("MYSQL_SERVER", {"MYSQL_SERVER_PORT": "1"}, [1]),
        ("MINIO_HOST", {"MINIO_API_PORT": "1", "MINIO_CONSOLE_PORT": "2"}, [1, 2]),
        ("HOST", {"PORT": "1"}, [1]),
        ("MQ_HOSTNAME", {"MQ_PORT": "1", "MQ_PORT_MANAGEMENT": "2", "MQ_PORT_EXTERNAL": "3"}, [1, 2]),
        ("TARGET_HOST", {"TARGET_PORT": "1", "PORT": "2"}, [1]),
    ],
)
def test_the_port_beside(key: str, others: dict[str, str], ports: list[int]) -> None:
    assert list(ports_beside(key, {key: "x", **others})) == ports


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("DB_HOST", {"PORT": "1", "WEB_PORT": "2", "DB_EXTERNAL_PORT": "3", "DB_PORT_ALLOWED": "4", "DB_PORT": "x"}),
        ("SERVER", {"PORT": "1"}),
        ("REDIS_HOST", {"REDIS_SENTINEL_HOST": "y", "REDIS_SENTINEL_PORT": "1"}),
    ],
)
def test_the_twin_a_port_of_another(key: str, others: dict[str, str]) -> None:
    assert list(ports_beside(key, {key: "x", **others})) == []


def test_keys_that_stand_together() -> None:
    assert list(ports_beside("Server", {"Server": "x", "Port": "1"}, near=True)) == [1]
    assert list(ports_beside("address", {"address": "x", "port_value": "1"}, near=True)) == [1]
    assert list(ports_beside("host", {"host": "x", "db_port": "1"}, near=True)) == []
