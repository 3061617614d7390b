"""Tables of well-known images, URL schemes and health-check programs, and their ports. Pure.

The tables are the last source that is used, and hold only what is certain: a wrong guess would be a listener at the wrong
port, which looks like a broken application.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Known(NamedTuple):
    """``ports``, the clients' port first. A ``store`` is always called at that port, whatever else is published."""

    ports: tuple[int, ...]
    store: bool = False


_DATABASES = {
    "postgres": 5432, "postgresql": 5432, "postgis": 5432, "pgvector": 5432, "timescaledb": 5432, "pgbouncer": 6432,
    "mysql": 3306, "mariadb": 3306, "percona": 3306, "mongo": 27017, "mongodb": 27017, "redis": 6379, "redis-stack": 6379,
    "redis-stack-server": 6379, "valkey": 6379, "keydb": 6379, "dragonfly": 6379, "memcached": 11211,
    "rabbitmq": 5672, "nats": 4222, "kafka": 9092, "cp-kafka": 9092, "redpanda": 9092, "zookeeper": 2181,
    "cp-zookeeper": 2181, "cassandra": 9042, "influxdb": 8086, "elasticsearch": 9200, "opensearch": 9200, "etcd": 2379,
    "couchdb": 5984, "neo4j": 7687, "clickhouse-server": 8123, "mosquitto": 1883, "beanstalkd": 11300, "solr": 8983,
    "meilisearch": 7700, "openldap": 389,
}  # fmt: skip
_SERVERS = {
    "nginx": 80, "httpd": 80, "caddy": 80, "wordpress": 80, "nextcloud": 80, "phpmyadmin": 80, "drupal": 80, "joomla": 80,
    "matomo": 80, "whoami": 80, "grafana": 3000, "gitea": 3000, "prometheus": 9090, "alertmanager": 9093,
    "pushgateway": 9091, "node-exporter": 9100, "cadvisor": 8080, "loki": 3100, "kibana": 5601, "logstash": 5044,
    "opensearch-dashboards": 5601, "minio": 9000, "vault": 8200, "consul": 8500, "adminer": 8080, "keycloak": 8080,
    "ghost": 2368, "registry": 5000, "mailhog": 1025, "mailpit": 1025, "docker-socket-proxy": 2375, "tomcat": 8080,
    "jenkins": 8080, "sonarqube": 9000, "n8n": 5678, "metabase": 3000, "flower": 5555, "redis_exporter": 9121,
    "postgres-exporter": 9187, "mysqld-exporter": 9104, "blackbox-exporter": 9115, "chrome": 3000, "gotenberg": 3000,
    "elastichq": 5000, "redis-commander": 8081, "mongo-express": 8081, "pgadmin4": 80,
}  # fmt: skip
_FPM = 9000

SCHEMES = {
    "http": 80, "https": 443, "ws": 80, "wss": 443, "postgres": 5432, "postgresql": 5432, "pgsql": 5432, "mysql": 3306,
    "mysql2": 3306, "mariadb": 3306, "redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671, "pyamqp": 5672,
    "mongodb": 27017, "memcached": 11211, "nats": 4222, "ldap": 389, "ldaps": 636, "smtp": 25, "smtps": 465, "mqtt": 1883,
    "mqtts": 8883, "ftp": 21, "ssh": 22, "cassandra": 9042, "bolt": 7687, "neo4j": 7687, "clickhouse": 8123,
}  # fmt: skip
"""The port that a URL without one means."""

HEALTH_PROGRAMS = {
    "pg_isready": 5432, "mysqladmin": 3306, "healthcheck.sh": 3306, "redis-cli": 6379, "valkey-cli": 6379, "mongosh": 27017,
    "mongo": 27017, "rabbitmq-diagnostics": 5672, "rabbitmqctl": 5672, "cqlsh": 9042,
}  # fmt: skip
"""The port that a health check by this program connects to, if it names none."""

_ROUTERS = re.compile(r"traefik|nginx-proxy|docker-gen|caddy-docker-proxy|docker-proxy$|sozu|fabio")


def known(image: str) -> Known | None:
    """The ports of an image by its name, such as ``registry:5000/bitnami/postgresql:16@sha256:…``."""
    name, tag = split(image)
    if name == "php" or (name in _SERVERS and "fpm" in tag):
        return Known((_FPM,)) if "fpm" in tag else Known((80,)) if "apache" in tag else None
    if name in _DATABASES:
        return Known((_DATABASES[name],), store=True)
    return Known((_SERVERS[name],)) if name in _SERVERS else None


def split(image: str) -> tuple[str, str]:
    """The last part of an image's path, and its tag."""
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    return name.lower(), tag.lower()


def is_router(image: str) -> bool:
    """Whether the image is a router that finds its backends by asking Docker."""
    return _ROUTERS.search(image.partition("@")[0].lower()) is not None
