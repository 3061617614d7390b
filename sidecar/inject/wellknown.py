"""Tables of well-known images, URL schemes and health-check programs, and their ports. Pure.

Each image has ports for *clients*, for *peers* of one cluster, and for *administration* and what else a call always names.
A call that names no port is one of a client, so it is allowed to the client ports alone. The others are known too: a call
there is refused by name and logged. The tables hold only what is certain: a wrong guess would be a listener at the wrong
port, which looks like a broken application.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Role = Literal["client", "peer", "administration", ""]
"""What a port is for; empty if no table knows it."""


class Known(NamedTuple):
    """``is_web``: a general server, which listens where its own configuration says, and on these ports if nothing does.
    ``is_store``: it answers, and calls only others of its kind."""

    clients: tuple[int, ...]
    peers: tuple[int, ...] = ()
    administration: tuple[int, ...] = ()
    is_web: bool = False
    is_store: bool = False

    def role(self, port: int) -> Role:
        return (
            "client" if port in self.clients
            else "peer" if port in self.peers
            else "administration" if port in self.administration
            else ""
        )  # fmt: skip


_STORES = """
postgres postgresql postgis pgvector timescaledb timescaledb-ha pgvecto-rs vectorchord supabase/postgres spilo alloydbomni
    edoburu/pgbouncer = 5432
pgbouncer pgcat = 6432
mysql mysql-server mariadb percona percona-server = 3306
mssql/server azure-sql-edge = 1433
oracle-free oracle-xe database/free database/express = 1521 | | 5500
mongo mongodb mongodb-community-server mongodb-atlas-local percona-server-mongodb = 27017
redis redis-stack-server valkey keydb dragonfly redict redis-cluster = 6379
redis-stack = 6379 | | 8001
redis-sentinel = 26379
memcached = 11211
cassandra scylla dse-server = 9042 | 7000 7001 | 7199
influxdb = 8086
elasticsearch = 9200 | 9300
opensearch = 9200 | 9300 | 9600
etcd = 2379 | 2380
couchdb = 5984 | 4369 9100
neo4j = 7687 | | 7474
clickhouse-server clickhouse = 8123 9000 | 9009
cockroach = 26257 | | 8080
yugabyte = 5433 9042 | 7100 9100 | 7000
tidb = 4000 | | 10080
arangodb = 8529
rethinkdb = 28015 | 29015 | 8080
questdb = 9000 8812 9009
surrealdb qdrant/surrealdb = 8000
firebird = 3050
db2 = 50000
aerospike-server = 3000 | 3001 3002
hazelcast = 5701
tarantool = 3301
victoria-metrics = 8428
victoria-logs = 9428
milvus = 19530 | | 9091
qdrant = 6333 6334 | 6335
weaviate = 8080 50051
chroma chromadb = 8000
meilisearch = 7700
typesense = 8108 | 8107
solr = 8983
openldap = 389 | | 636
bitnami/openldap = 1389 | | 1636
lldap = 3890 | | 17170
rabbitmq = 5672 | 4369 25672 | 15672 15692
minio = 9000 | | 9001
nats nats-streaming = 4222 | 6222 | 8222
"""
_SERVERS = """
kafka cp-kafka cp-server = 9092 | 9093
redpanda = 9092 | 33145 | 9644 8081 8082
zookeeper cp-zookeeper = 2181 | 2888 3888
pulsar pulsar-all = 6650 8080
clamav = 3310
activemq activemq-classic activemq-artemis = 61616 5672 | | 8161
mosquitto eclipse-mosquitto = 1883
emqx = 1883 | 4370 | 8083 18083
nsqd = 4150 4151
nsqlookupd = 4160 4161
beanstalkd = 11300
schema-registry cp-schema-registry = 8081
cp-kafka-connect debezium/connect = 8083
cp-kafka-rest = 8082
ksqldb-server cp-ksqldb-server = 8088
kafka-ui akhq kafbat-ui redpandadata/console = 8080
kafdrop = 9000
cp-enterprise-control-center = 9021
azurite = 10000 10001 10002
localstack = 4566
dynamodb-local = 8000
elasticmq elasticmq-native = 9324 | | 9325
garage = 3900 | 3901 | 3903
sftp = 22
mailhog mailpit = 1025 | | 8025
maildev mailcatcher = 1025 | | 1080
greenmail greenmail/standalone = 3025 3143
smtp4dev = 25 | | 80
exim4 postfix smtp = 25
docker-mailserver = 25 143 465 587 993
consul = 8500 | 8300 8301 8302
nomad = 4646 | 4647 4648
vault openbao = 8200 | 8201
nacos-server = 8848 9848 | 7848
unleash-server = 4242
flagd = 8013 | | 8014
temporalio/auto-setup temporalio/server = 7233 | 6933 6934 6935 6939
temporalio/ui = 8080
keycloak = 8080 | 7800 | 9000 8443
oauth2-proxy = 4180
dex = 5556 | | 5557 5558
hydra = 4444 | | 4445
kratos = 4433 | | 4434
zitadel = 8080
openfga = 8080 8081 | | 3000
opa = 8181
spicedb = 50051
authelia = 9091
goauthentik/server = 9000 | | 9300 9443
kong = 8000 | | 8001 8002 8443 8444
apisix = 9080 | | 9180 9443
squid = 3128
jaegertracing/all-in-one jaeger = 4317 4318 14268 14250 | | 16686 14269
zipkin zipkin-slim = 9411
opentelemetry-collector opentelemetry-collector-contrib otel-collector = 4317 4318 | | 8888 13133
tempo = 3200 4317 4318
loki = 3100 | 7946 9095
prometheus = 9090
alertmanager = 9093 | 9094
pushgateway = 9091
grafana = 3000
grafana-image-renderer = 8081
pyroscope = 4040
promtail = 9080
alloy = 12345
fluentd = 24224
fluent-bit = 24224 | | 2020
logstash = 5044 | | 9600
kibana opensearch-dashboards = 5601
graylog = 9000 12201
graylog-datanode = 9200 8999 | 9300
datalust/seq = 80 5341
node-exporter node_exporter = 9100
cadvisor = 8080
blackbox-exporter = 9115
redis_exporter = 9121
postgres-exporter postgres_exporter = 9187
mysqld-exporter = 9104
mongodb_exporter = 9216
elasticsearch-exporter elasticsearch_exporter = 9114
nginx-prometheus-exporter = 9113
kafka-exporter = 9308
statsd-exporter = 9125 | | 9102
uptime-kuma = 3001
netdata = 19999
portainer portainer-ce = 9000 | | 9443
docker-socket-proxy = 2375
gitea forgejo = 3000 | | 22
gitlab-ce gitlab-ee = 80 | | 22 443
registry = 5000 | | 5001
nexus3 = 8081
jenkins = 8080 | 50000
sonarqube = 9000
verdaccio = 4873
hasura/graphql-engine graphql-engine = 8080
postgrest = 3000 | | 3001
gotrue = 9999
postgres-meta imgproxy = 8080
storage-api = 5000
directus = 8055
n8n = 5678
metabase gotenberg browserless/chrome dbgate umami = 3000
superset = 8088
ghost = 2368
guacd = 4822
odoo = 8069 8072
redmine = 3000
mattermost-team-edition mattermost-enterprise-edition = 8065
zabbix-server-mysql zabbix-server-pgsql = 10051
zabbix-web-nginx-mysql zabbix-web-nginx-pgsql zabbix-web-apache-mysql = 8080
zabbix-agent zabbix-agent2 = 10050
ollama = 11434
tritonserver = 8000 8001 | | 8002
mlflow = 5000
guacamole/guacamole geoserver xxl-job-admin skywalking-ui = 8080
skywalking-oap-server = 11800 12800
requarks/wiki hedgedoc outlinewiki/outline = 3000
wekan = 8080
concourse/concourse = 8080 2222
mediamtx = 8554 1935 8888 8889 | | 9997
vllm-openai = 8000
open-webui searxng = 8080
litellm = 4000
tika = 9998
libretranslate elastichq = 5000
selenium/hub = 4444 | 4442 4443
standalone-chrome standalone-firefox standalone-chromium standalone-edge = 4444 | | 5900 7900
node-chrome node-firefox node-chromium node-edge = 5555 | | 5900 7900
flaresolverr = 8191
immich-server = 2283
immich-machine-learning = 3003
paperless-ngx = 8000
homeassistant = 8123
node-red = 1880
jellyfin = 8096
sonarr = 8989
radarr = 7878
prowlarr = 9696
adminer = 8080
phpmyadmin = 80
pgadmin4 = 80
mongo-express redis-commander pgweb = 8081
redisinsight = 5540
flower = 5555
documentserver = 80
collabora/code = 9980
wiremock = 8080
mockserver = 1080
apache/hive = 10000 9083
trino = 8080
itzg/minecraft-server = 25565 | | 25575
livekit-server = 7880 7881
"""
_WEB = """
nginx nginx-unprivileged httpd caddy openresty haproxy traefik wordpress nextcloud drupal joomla matomo mediawiki whoami
    httpbin = 80
tomcat = 8080
"""
_FPM = 9000


def _table(text: str, *, is_web: bool = False, is_store: bool = False) -> dict[str, Known]:
    """A line an image: ``names = clients | peers | administration``."""
    found: dict[str, Known] = {}
    for line in text.replace("\n    ", " ").strip().splitlines():
        names, _, ports = line.partition(" = ")
        clients, peers, administration = (tuple(map(int, part.split())) for part in f"{ports}||".split("|")[:3])
        found |= dict.fromkeys(names.split(), Known(clients, peers, administration, is_web, is_store))
    return found


_KNOWN = _table(_STORES, is_store=True) | _table(_SERVERS) | _table(_WEB, is_web=True)

SCHEMES = {
    "http": 80, "https": 443, "ws": 80, "wss": 443, "postgres": 5432, "postgresql": 5432, "pgsql": 5432, "mysql": 3306,
    "mysql2": 3306, "mariadb": 3306, "redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671, "pyamqp": 5672,
    "mongodb": 27017, "memcached": 11211, "nats": 4222, "ldap": 389, "ldaps": 636, "smtp": 25, "smtps": 465, "mqtt": 1883,
    "mqtts": 8883, "ftp": 21, "ssh": 22, "cassandra": 9042, "bolt": 7687, "neo4j": 7687, "sqlserver": 1433, "mssql": 1433,
    "oracle": 1521, "spark": 7077, "gcomm": 4567, "ldapi": 389, "cockroachdb": 26257, "sftp": 22, "thrift": 9083,
}  # fmt: skip
"""The port that a URL without one means."""

PROTOCOLS = {
    "amqp": {5671, 5672}, "imap": {143, 993}, "ldap": {389, 636}, "mqtt": {1883, 8883}, "rcon": {25575}, "sftp": {22},
    "smtp": {25, 465, 587, 1025, 2525}, "ssh": {22}, "xmpp": {5222, 5347},
}  # fmt: skip
"""The ports that a key of a host means by this word, as in ``RCON_HOST``, if the host listens there."""

HEALTH_PROGRAMS = {
    "pg_isready": 5432, "mysqladmin": 3306, "healthcheck.sh": 3306, "redis-cli": 6379, "valkey-cli": 6379, "mongosh": 27017,
    "mongo": 27017, "rabbitmq-diagnostics": 5672, "rabbitmqctl": 5672, "cqlsh": 9042,
}  # fmt: skip
"""The port that a health check by this program connects to, if it names none."""

_BROKERS = {1883, 4150, 4222, 5672, 6650, 9092, 11300, 61616}
_ROUTERS = re.compile(r"traefik|nginx-proxy|docker-gen|caddy-docker-proxy|docker-proxy$|sozu|fabio")


def known(image: str) -> Known | None:
    """The ports of an image by its name, such as ``registry:5000/bitnami/postgresql:16@sha256:…``."""
    name, tag = split(image)
    if re.search(r"(?:^|[-_]|php)fpm(?:$|[-_\d])", f"{name}-{tag}"):
        return Known((_FPM,))
    if name == "php":
        return Known((80,), is_web=True) if "apache" in tag else None
    path = image.partition("@")[0].lower().removesuffix(f":{tag}")
    return _KNOWN.get("/".join(path.split("/")[-2:])) or _KNOWN.get(name)


def is_broker(image: str) -> bool:
    """Whether services fetch messages from it, and so need nobody who calls them."""
    found = known(image)
    return found is not None and not _BROKERS.isdisjoint(found.clients)


def split(image: str) -> tuple[str, str]:
    """The last part of an image's path, and its tag."""
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    return name.lower(), tag.lower()


def serves_files(image: str) -> bool:
    """Whether the image is a web server that runs no programs: those that are mounted are for another service, or for
    browsers."""
    return split(image)[0] in {"nginx", "nginx-unprivileged", "openresty", "httpd", "caddy"}


def is_router(image: str) -> bool:
    """Whether the image is a router that finds its backends by asking Docker."""
    return _ROUTERS.search(image.partition("@")[0].lower()) is not None
