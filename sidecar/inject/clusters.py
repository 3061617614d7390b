"""Services that form a cluster, or find each other through a registry, and what that means for a mesh. Pure.

Such members call each other, though no file may say which. There are two kinds. Members that go *by name* (MongoDB, Kafka,
etcd) are meshed: each may call the others at the ports of that kind. Members that tell each other their *addresses*
(Elasticsearch, Redis Cluster, Eureka) cannot be meshed among each other, because nobody but a sidecar can be reached at an
address of a private network. They stay together on one network, in plaintext, and everyone else leaves it. Both are told
in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sidecar.inject.application import Application
from sidecar.inject.edges import Mention, StaticReference, Text
from sidecar.inject.references import in_text
from sidecar.inject.visibility import App, leads_to, names_for, neighbours

_NONE = r"(?!)"


class _Kind(NamedTuple):
    """``marker`` is found in what a member's own files say; its group, if it has one, tells two clusters apart. ``image`` is
    found in the images of members that only others name. ``ports`` are those of peers. Members that tell addresses go
    ``by_name`` too if each says ``named``. ``clients`` are told the members' addresses, and so belong to them."""

    name: str
    marker: re.Pattern[str]
    image: re.Pattern[str]
    ports: tuple[int, ...] = ()
    by_name: bool = True
    named: re.Pattern[str] = re.compile(_NONE)
    clients: bool = False


def _kind(
    name: str, marker: str, image: str, *ports: int, by_name: bool = True, named: str = _NONE, clients: bool = False
) -> _Kind:
    return _Kind(name, re.compile(marker), re.compile(image), ports, by_name, re.compile(named), clients)


_KINDS = (
    _kind("MongoDB sharded cluster", r"--(?:configdb|shardsvr|configsvr)\b", "mongo", 27017, 27018, 27019),
    _kind("MongoDB replica set", r"(?:--replSet[= ]|replSetName: *|REPLICA_?SET_NAME=)[\"']?([\w.-]+)", "mongo", 27017),
    _kind("Kafka cluster", r"KAFKA_(?:CFG_)?(?:BROKER_ID|NODE_ID|CONTROLLER_QUORUM_VOTERS|PROCESS_ROLES)=", _NONE),
    _kind("Redpanda cluster", r"--advertise-rpc-addr", "redpanda", 33145),
    _kind("RabbitMQ cluster", r"join_cluster|RABBITMQ_CLUSTER|cluster_formation|CLUSTER_WITH=", "rabbitmq", 4369, 25672),
    _kind("MinIO cluster", r"\bserver\s[^\n]{0,300}https?://", "minio", 9000),
    _kind("etcd cluster", r"initial-cluster[= ]|ETCD_INITIAL_CLUSTER=", "etcd", 2379, 2380),
    _kind("ZooKeeper ensemble", r"\b(?:ZOO|ZOOKEEPER)_SERVERS=", "zookeeper", 2888, 3888),
    _kind("NATS cluster", r"-routes\b|cluster_url|\broutes *[=:]", "nats", 6222),
    _kind("Vault cluster", r"retry_join|VAULT_RAFT_NODE_ID", "vault", 8200, 8201),
    _kind("Patroni cluster", r"\bPATRONI_\w+=", "patroni|spilo", 5432, 8008,
          by_name=False, named=r"PATRONI_\w*CONNECT_ADDRESS=|\bconnect_address:"),
    _kind("ClickHouse cluster", r"<remote_servers|<interserver_http_host", "clickhouse", 9000, 9009),
    _kind(
        "Elasticsearch or OpenSearch cluster",
        r"discovery[._]seed_hosts|initial_(?:master|cluster_manager)_nodes|discovery\.zen\.ping\.unicast",
        "elasticsearch|opensearch", 9300, by_name=False,
    ),
    _kind("Redis Cluster", r"cluster-enabled[= ]+yes|REDIS_CLUSTER_(?:CREATOR|REPLICAS)|redis-cli[^\n]{0,300}--cluster",
          "redis|valkey", 6379, by_name=False, named=r"cluster-announce-hostname", clients=True),
    _kind("set of Redis servers and Sentinels", r"sentinel monitor|redis-sentinel|--sentinel\b|REDIS_SENTINEL_QUORUM",
          "redis|valkey", 6379, 26379, by_name=False, named=r"resolve-hostnames yes|announce-ip|ANNOUNCE_IP", clients=True),
    _kind("Cassandra ring", r"\b\w*(?:CASSANDRA|SCYLLA)_SEEDS=|--seeds[= ]", "cassandra|scylla", by_name=False),
    _kind("Consul or Nomad cluster",
          r"-(?:retry-)?join\b|(?:retry|start)_join|-bootstrap-expect|\bagent\b[^\n]{0,300}-server",
          "consul|nomad", by_name=False),
    _kind("Galera cluster", r"gcomm://|wsrep_|GALERA_|CLUSTER_JOIN=", "mariadb|mysql|percona|galera", by_name=False),
    _kind("CockroachDB cluster", r"--join[= ]", "cockroach", 26257, by_name=False,
          named=r"--advertise-(?:addr|host)|^hostname"),
    _kind("memberlist ring", r"\bjoin_members\b|--?cluster\.peer\b|-memberlist\.join\b", _NONE, by_name=False),
    _kind("Flink cluster", r"jobmanager\.rpc\.address|JOB_MANAGER_RPC_ADDRESS", "flink", by_name=False),
    _kind("Spark cluster", r"spark://|\bSPARK_MODE=", "spark", by_name=False),
    _kind("Hadoop cluster", r"CORE_CONF_fs_defaultFS|fs\.default(?:FS|\.name)", "hadoop|namenode|datanode", by_name=False),
    _kind("Temporal cluster", r"TEMPORAL_BROADCAST_ADDRESS=|(?:^|\n)SERVICES=(?:frontend|history|matching|worker)",
          "temporalio", by_name=False),
    _kind("Selenium Grid", r"\b(?:SE_EVENT_BUS_HOST|HUB_HOST)=", "selenium", 4442, 4443, 5555,
          by_name=False, named=r"SE_NODE_HOST="),
    _kind("Druid cluster", r"\bdruid_zk", "druid", by_name=False),
    _kind("Trino or Presto cluster", r"discovery\.uri", "trino|presto", by_name=False),
    _kind("Dask or Ray cluster", r"\bdask[- ](?:scheduler|worker)\b|\bray start\b", _NONE, by_name=False),
    _kind("set of services that find each other through a registry",
          r"(?i)eureka[\w.]*(?:url|zone|server|uri)|spring[_.]cloud[_.](?:consul|nacos|zookeeper)|nacos[\w.]*addr",
          r"eureka|nacos", by_name=False, named=r"(?i)instance[._]hostname|^hostname"),
)  # fmt: skip

_READ = 32 << 10
"""Of each file. A cluster is set up in small files."""

_NO_PORT = {None, 80, 443}
"""``http://minio1`` is what a member is told, and it adds its own port."""

_NEEDS_IMAGE = {
    "RabbitMQ cluster", "MinIO cluster", "NATS cluster", "Vault cluster", "Cassandra ring", "Consul or Nomad cluster",
    "Galera cluster", "CockroachDB cluster", "ClickHouse cluster", "ZooKeeper ensemble", "Trino or Presto cluster",
    "MongoDB sharded cluster", "MongoDB replica set", "etcd cluster", "Hadoop cluster", "Redis Cluster",
}  # fmt: skip
"""Clients of these may say the same as members."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``members`` share ``network``. They are meshed if they go ``by_name``; otherwise they stay there."""

    name: str
    members: tuple[str, ...]
    network: str
    by_name: bool
    ports: tuple[int, ...]

    @property
    def reason(self) -> str:
        return f"they are {_one(self.name)}, whose members call each other at their own addresses"


def find_clusters(
    application: Application,
    apps: Mapping[str, App],
    mentions: tuple[Mention, ...],
    texts: Mapping[str, tuple[Text, ...]],
    bases: Mapping[str, str],
) -> tuple[Cluster, ...]:
    """The clusters of the application, each of two members or more. ``bases`` are base images of services that are built.
    An app belongs to the first that it fits."""
    said = {name: _said(app, texts) for name, app in apps.items()}
    images = {name: " ".join(bases.get(it.name, it.image) for it in app.members).lower() for name, app in apps.items()}
    calls = [it for it in mentions if it.kind not in {"depends_on", "links", "shared"}]
    found: list[Cluster] = []
    taken: set[str] = set()
    for kind in _KINDS:
        together: dict[str, set[str]] = {}
        for name, text in said.items():
            match = kind.marker.search(text) if name not in taken else None
            if match is not None and (kind.name not in _NEEDS_IMAGE or kind.image.search(images[name])):
                together.setdefault(match[1] if kind.marker.groups else "", set()).add(name)
        for members in together.values():
            named = {it.callee for it in calls if it.caller in members}
            named |= {callee for name in members for callee in _joined(apps[name], apps, kind.marker)}
            members |= {name for name in named - taken if kind.image.search(images[name])}
            by_name = kind.by_name or all(kind.named.search(said[name]) for name in members)
            if kind.clients and not by_name:
                members |= {it.caller for it in calls if it.callee in members} - taken
            for network in sorted(application.networks, key=lambda key: -len(_on(key, members, apps))):
                on = _on(network, members, apps)
                if len(on) > 1:
                    found.append(Cluster(kind.name, on, network, by_name, kind.ports))
                    taken |= {*on}
                    break
    return tuple(found)


def with_clusters(
    mentions: tuple[Mention, ...], clusters: tuple[Cluster, ...], apps: Mapping[str, App]
) -> tuple[Mention, ...]:
    """The mentions, and those that no file has: each member that goes by name calls each other, at the ports of that kind
    and at those that the other gives itself. A member that another names without a port is called at these ports too."""
    found: dict[Mention, None] = dict.fromkeys(mentions)
    for cluster in clusters:
        for callee in cluster.members:
            ports = dict.fromkeys([*cluster.ports, *_given(apps[callee])])
            bare = [it for it in found if it.callee == callee and it.caller in cluster.members and it.port in _NO_PORT]
            for mention in bare if ports else ():
                del found[mention]
                found |= dict.fromkeys(replace(mention, port=port) for port in ports)
            for caller in cluster.members if cluster.by_name else ():
                for port in ports or (None,):
                    if caller != callee:
                        found[Mention(caller, callee, port, "cluster", f"members of one {cluster.name}")] = None
    return tuple(found)


def _joined(app: App, apps: Mapping[str, App], marker: re.Pattern[str]) -> Iterator[str]:
    """The apps that the variables which make it a member name, as ``RABBITMQ_CLUSTER_WITH=rabbit1`` does."""
    names = leads_to(names_for(app, apps, neighbours(app, apps)))
    for member in app.members:
        for key, value in member.environment.items():
            if marker.search(f"{key}={value}"):
                hosts = (item.rpartition("@")[2] for item in re.split(r"[\s,;]+", value))
                yield from (names[host] for host in hosts if host in names)


def _given(app: App) -> Iterator[int | None]:
    """The ports at which an app is to be called by its own names, as its variables say."""
    own = dict.fromkeys(app.own_names(), app.name)
    for member in app.members:
        for value in member.environment.values():
            yield from (it.port for it in in_text(value, own, variables=member.environment) if f":{it.port}" in value)


def cluster_references(clusters: tuple[Cluster, ...]) -> Iterator[StaticReference]:
    """The members that stay on their network because they call each other at addresses."""
    for cluster in clusters:
        for caller, callee in zip(cluster.members, cluster.members[1:], strict=False):
            if not cluster.by_name:
                yield StaticReference(caller, callee, cluster.network, _one(cluster.name), cluster.reason)


def told(clusters: tuple[Cluster, ...]) -> Iterator[str]:
    """One sentence for each cluster that is meshed. Those that stay on a network are told with their network."""
    for cluster in clusters:
        if cluster.by_name:
            yield f"{', '.join(cluster.members)} are {_one(cluster.name)}: each may call the others"


def _one(name: str) -> str:
    return f"an {name}" if name[0] in "Ee" else f"a {name}"


def _on(network: str, members: set[str], apps: Mapping[str, App]) -> tuple[str, ...]:
    return tuple(sorted(name for name in members if network in apps[name].owner.networks))


def _said(app: App, texts: Mapping[str, tuple[Text, ...]]) -> str:
    """What a member's own files say: its image's name, its variables, its command, and its configuration."""
    parts = [f"hostname {app.owner.name}"] if app.owner.host_names else []
    parts += [f"image {member.image}" for member in app.members]
    parts += [f"{key}={value}" for member in app.members for key, value in member.environment.items()]
    parts += [member.command for member in app.members]
    parts += [it.text[:_READ] for member in app.members for it in texts.get(member.name, ()) if it.is_configuration]
    return "\n".join(parts)[: 4 * _READ]
