"""What a service tells of itself where no port of it is declared: at which port it listens, or that it is a worker or a job,
which listens nowhere. Pure.

How this works. Nobody asks for the port of a worker, and nobody is told that it cannot be reached. So a service counts as a
worker only by what is plain: its name or its command says so, its image is a tool, others wait for it to complete, or its
whole source is at hand and opens no listener. Where a worker is built from the same source as a server, the source's port is
the server's.
"""

from __future__ import annotations

import re

from sidecar.inject.application import ComposeService
from sidecar.inject.attribution import commands_of
from sidecar.inject.edges import Text
from sidecar.inject.references import exposed_ports, own_ports
from sidecar.inject.wellknown import known, split

_PROXY_LABEL = re.compile(r"traefik\.(?:port|[\w.-]*\.loadbalancer\.server\.port|[\w.-]+\.port)")

_PROGRAMS = {
    r"flask\b.*\brun": 5000, r"uvicorn|hypercorn|daphne|gunicorn|runserver|fastapi\s+(?:run|dev)": 8000,
    r"rails\s+s(?:erver)?\b": 3000, r"artisan\s+serve": 8000,
    r"(?:next|nuxt|nuxi)\s+(?:start|dev)|react-scripts\s+start": 3000,
    r"vite\s+preview": 4173, r"vite(?!\S)(?!\s+build)": 5173, r"ng\s+serve": 4200, r"streamlit\s+run": 8501,
    r"jupyter[\s-]\w+": 8888, r"http-server": 8080, r"-m\s+http\.server": 8000, r"json-server": 3000,
    r"mlflow\s+(?:server|ui)": 5000, r"airflow\s+(?:webserver|api-server)": 8080, r"celery\b.*\bflower": 5555,
    r"superset\s+run": 8088, r"prefect\s+server\s+start": 4200, r"dagster-webserver|dagit": 3000, r"mkdocs\s+serve": 8000,
    r"hugo\s+serve": 1313, r"jekyll\s+serve": 4000, r"ollama\s+serve": 11434, r"chroma\s+run": 8000,
    r"dask[\s-]scheduler": 8786,
    r"php-fpm": 9000, r"(?:apache2|httpd)-foreground|nginx\s+-g|caddy\s+run": 80, r"catalina\.sh\s+run": 8080,
    r"node-red": 1880,
    r"redis-server": 6379, r"postgres(?!\S)": 5432, r"(?:mysql|mariadb)d\b": 3306,
    r"rabbitmq-server": 5672, r"mongod\b": 27017,
    r"nats-server": 4222, r"minio\s+server": 9000, r"mockserver|wiremock": 8080, r"tritonserver": 8000,
}  # fmt: skip
"""The port of a server that a command starts, if the command names none."""

_OPTION = re.compile(
    r"(?:\s(?:-p|--port|--http-port|-l)[= ]|runserver\s+|server\.port=|-S\s+[\w.]+:)(\d{2,5})(?![\d.])"
)
_SCRIPT = re.compile(r"\b(?:npm|yarn|pnpm|bun)\s+(?:run(?:-script)?\s+|--?\S+\s+)*([\w:.-]+)")

_SOURCE = (
    re.compile(r"\.listen\(\s*(\d{2,5})\b"),
    re.compile(r"(?:ListenAndServe(?:TLS)?|\.Run|\.Start|\.Listen|net\.Listen)\((?:\"tcp\d?\",\s*)?\"[^\"\s]*:(\d{2,5})\""),
    re.compile(r"\b(?:app|uvicorn|server|web|socketio|bottle|aiohttp)\w*\.run(?:_app|_simple)?\([^)]{0,300}?\bport\s*=\s*(\d{2,5})"),
    re.compile(r"(?<![\w.-])server\.port\s*[=:]\s*(?:\$\{\w+:)?(\d{2,5})"),
    re.compile(r"^server:[ \t]*\n(?:[ \t]+.*\n)*?[ \t]+port:\s*(?:\$\{\w+:)?(\d{2,5})", re.MULTILINE),
    re.compile(r"(?<![A-Za-z_])(?:SERVER_|HTTP_|APP_)?PORT[\"'\])]*\s*(?:\|\||\?\?|,|or\b)\s*[\"']?:?(\d{2,5})\b"),
)  # fmt: skip
"""Where a source says its own port."""

_SERVES = re.compile(
    r"\.listen\(|ListenAndServe|net\.Listen|app\.run\(|uvicorn|gunicorn|FastAPI\(|Flask\(|express\(|createServer|fastify|"
    r"RestController|SpringBootApplication|HttpServer|http\.server|TCPServer|grpc\.server|grpc\.NewServer|CreateBuilder\(|"
    r"actix_web|axum|rocket::|Sinatra|Application\.listen|serve\(|Bun\.serve|Deno\.serve"
)

_WORKER_NAME = re.compile(
    r"(?i)(?:^|[-_./])(?:worker|job|cron|crontab|migrat(?:e|ion|or)|init|initializer|seed|seeder|setup|beat|scheduler|consumer|"
    r"backup|celery|sidekiq|task|runner|cli|bootstrap|loader|importer|watchtower|autoheal|certbot|test|tester|e2e|cypress|"
    r"playwright|bot|crawler|scraper|etl|sync|cleanup|cleaner|permission|perm|chown|downloader|trainer|horizon|async|background|"
    r"daemon|notifier|createbucket|create|provision|provisioner|installer|builder|build|wait|waiter|relayer|helper|shell|tool|toolbox|"
    r"composer|npm|artisan|mc|ofelia|ddns|tunnel|ngrok|cloudflared|autossh|simulator|generator|loadgen|loadgenerator|producer|"
    r"publisher|subscriber|dispatcher|processor|poller|watcher|reaper|archiver|indexer|ingest|ingestor|ingester|ingestion|mailer|"
    r"sender|renew|renewer|dump|dumper|restore|batch|promtail|filebeat|fluentbit|telegraf|pipeline|configurator|companion|"
    r"executor|dispatch|letsencrypt|acme|dehydrated|lego)s?\d*(?=$|[-_./:])"
)
_WORKER_NAME_UNLESS_NAMED = re.compile(
    r"(?i)(?:^|[-_./])(?:client|agent|listener|collector|transcoder|encoder|converter|renderer|recorder|uploader|updater|"
    r"checker|scanner|fetcher|parser|enricher|aggregator|handler|forwarder|replicator)s?\d*(?=$|[-_./:])"
)
_WORKER_COMMAND = re.compile(
    r"(?i)\bcelery\b|\bsidekiq\b|\brqworker\b|\brq\s+worker|\bqueue:(?:work|listen)|\bschedule:(?:run|work)|\bhorizon\b|"
    r"\b(?:migrat\w*|dramatiq|huey\w*|arq|supercronic|crond?|pytest|pg_dump\w*|mysqldump|alembic|flyway|liquibase|"
    r"createsuperuser|rclone|restic|certbot|good_job|delayed_job|resque|solid_queue|spark-submit)\b|\bflink\s+run|\bdb:\w+|\bprisma\s+(?:migrate|db)|"
    r"\bmc\s+(?:alias|mb|config|policy|anonymous|cp|mirror)|\bsleep\s+(?:infinity|\d)|\btail\s+-[fF]|"
    r"\b(?:npm|yarn|pnpm)\s+(?:ci|install|(?:run\s+)?(?:build|watch|test|lint)\w*)|--create\b.*--topic|--topic\b.*--create|"
    r"(?:^|[\s/._:]|\w-)(?:workers?|consumer|cron|seed\w*|bot|scheduler|jobs?|crawler|scraper|init|create[-_]\w+)(?:$|[\s/._:-])|"
    r"^\s*(?:agent|exit|echo|chown|chmod|mkdir|curl|wget|psql|mongosh?|mysql|cp|true|touch)\b"
)
_SETS_UP = re.compile(r"(?<=/)init(?:\.\w+)?(?!\S)")
_LAST_COMMAND = re.compile(r"(?s).*(?:&&|;|\n)\s*(?=[^\s;&\"')}])(?!(?:fi|done|esac)\b)")
_TOOLS = {
    "mc", "flyway", "liquibase", "migrate", "curl", "busybox", "watchtower", "certbot", "ofelia", "autoheal", "cloudflared",
    "ngrok", "promtail", "filebeat", "metricbeat", "heartbeat", "fluent-bit", "telegraf", "dockerize", "wait-for-it",
    "rclone",
    "restic", "borgmatic", "ddclient", "ddns-updater", "diun", "docker-volume-backup", "newman", "k6", "composer", "awscli",
    "aws-cli", "azure-cli", "kubectl", "terraform", "ansible", "postgres-backup-local", "postgres-backup-s3",
    "mysql-cron-backup", "docker-gc", "tailscale", "wait", "wait-for-dependencies", "docker-compose-wait", "grafana-agent",
    "duckdns", "swag-dashboard", "whalebrew", "docker-autocompose", "cron", "kminion", "kafka-init", "git-sync",
}  # fmt: skip


def labelled_ports(service: ComposeService) -> dict[int, str]:
    """The ports that labels tell a reverse proxy."""
    found = [it for key, it in service.labels.items() if _PROXY_LABEL.fullmatch(key.lower()) and it.isdigit()]
    return dict.fromkeys(map(int, found), "its labels")


def listening_ports(service: ComposeService, dockerfile: str, texts: tuple[Text, ...]) -> dict[int, str]:
    """The ports that a service that is no worker opens, according to the program that it starts, or else to its source."""
    command = _started(service, dockerfile, texts)
    if _starts_server(command) and (found := _by_program(command)):
        return dict.fromkeys(found, "the server that it starts")
    for text in texts:
        if text.kind == "build" or (text.kind == "mounted" and not text.label.endswith((".json", ".md"))):
            for pattern in _SOURCE:
                found = [int(match[1]) for match in pattern.finditer(text.text) if 21 <= int(match[1]) <= 65535]
                if found:
                    return {found[0]: f"its source, {text.label}"}
    return {}


def is_worker(
    service: ComposeService,
    dockerfile: str,
    texts: tuple[Text, ...],
    *,
    completes: bool = False,
    named: bool = True,
    consumes: bool = False,
) -> bool:
    """Whether a service without any known port is plainly a worker or a job. ``completes``: others wait for its end.
    ``named``: others name it; a service that nobody names, and whose own command starts no server, is called by nobody.
    Neither is one that nobody names and that ``consumes`` messages."""
    command = _started(service, dockerfile, texts)
    names = (service.name, split(service.image)[0], service.container_name or "")
    is_named_so = any(_WORKER_NAME.search(name) for name in names)
    base = exposed_ports(dockerfile)[1] if not service.command and not is_named_so else ""
    if (known(service.image) or known(base)) and not (completes or _is_work(command, first_sets_up=True)):
        return False  # the server of that image
    if completes or service.restart == "no" or split(service.image)[0] in _TOOLS:
        return True
    if _starts_server(command):
        return False
    if not named and service.command and not own_ports(command):
        return True
    may_be_named_so = not named and any(_WORKER_NAME_UNLESS_NAMED.search(name) for name in names)
    if is_named_so or may_be_named_so or _is_work(command):
        return True
    if consumes and not named and not listening_ports(service, dockerfile, texts):
        return True
    source = [text.text for text in texts if text.kind == "build"]
    return bool(source) and bool(dockerfile) and not any(_SERVES.search(text) for text in source)


def _is_work(command: str, *, first_sets_up: bool = False) -> bool:
    """Whether a command does a worker's or a job's work. Options alone are for the server of the image.
    ``first_sets_up``: an ``init.sh`` of that image sets the server up, then starts it."""
    if command.lstrip().startswith("-") or _starts_server(command):
        return False
    if first_sets_up:
        command = _SETS_UP.sub(" ", command)
    return _WORKER_COMMAND.search(_LAST_COMMAND.sub("", command)) is not None


def _starts_server(command: str) -> bool:
    return any(re.search(rf"(?:^|[\s/\"';&=]){program}", command) for program in _PROGRAMS)


def _by_program(command: str) -> list[int]:
    told = [*own_ports(command), *(int(match[1]) for match in _OPTION.finditer(command))]
    known = [port for program, port in _PROGRAMS.items() if re.search(rf"(?:^|[\s/\"';&=]){program}", command)]
    return told[:1] or known[:1]


def _started(service: ComposeService, dockerfile: str, texts: tuple[Text, ...]) -> str:
    """The command line of a service: its own or its Dockerfile's, and the script that it runs of a package.json."""
    command = " ".join(commands_of(dockerfile, service.command))
    scripts = [match[1] for match in _SCRIPT.finditer(command)]
    for text in texts:
        if scripts and text.label.rpartition("/")[2] == "package.json":
            for script in scripts:
                found = re.search(rf'"{re.escape(script)}"\s*:\s*"((?:[^"\\]|\\.)*)"', text.text)
                command += f" {found[1]}" if found else ""
    return command
