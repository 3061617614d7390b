"""Which services listen, at which port, and which are workers: each kind with its twin."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.inject.edges import Text
from sidecar.inject.listening import is_worker, labelled_ports, listening_ports
from tests.inject.applications import application


def service(raw: dict[str, Any], name: str = "thing") -> Any:
    return application({name: raw}).services[name]


def source(text: str, label: str = "main.go") -> tuple[Text, ...]:
    return (Text(label, text, "build"),)


@pytest.mark.parametrize(
    ("raw", "dockerfile", "port"),
    [
        ({"command": "flask --app x run"}, "", 5000),
        ({"command": "gunicorn shop.wsgi"}, "", 8000),
        ({"command": "uvicorn main:app --port 9001"}, "", 9001),
        ({"command": "sh -c 'python manage.py migrate && python manage.py runserver 0.0.0.0:8888'"}, "", 8888),
        ({"command": "python manage.py runserver 7000"}, "", 7000),
        ({}, 'FROM python AS build\nCMD ["flask", "run"]\nFROM python\nCMD ["uvicorn", \\\n "main:app"]', 8000),
        ({"command": "app:api --port=99"}, 'ENTRYPOINT ["uvicorn"]', 99),
        ({"command": "npx vite"}, "", 5173),
        ({"command": "celery -A x flower"}, "", 5555),
    ],
)
def test_by_the_server_that_starts(raw: dict[str, Any], dockerfile: str, port: int) -> None:
    assert listening_ports(service(raw), dockerfile, ()) == {port: "the server that it starts"}


def test_by_a_script_of_the_package() -> None:
    package = source('{"scripts": {"build": "vite build", "dev": "next dev -p 3100"}}', "front/package.json")
    assert listening_ports(service({"command": "npm run dev"}), "", package) == {3100: "the server that it starts"}
    assert listening_ports(service({"command": "npm run build"}), "", package) == {}
    assert listening_ports(service({"command": "npm run other"}), "", package) == {}


@pytest.mark.parametrize(
    "text",
    [
        "app.listen(4321, () => log())", 'http.ListenAndServe("0.0.0.0:4321", nil)', 'net.Listen("tcp", ":4321")',
        'router.Run(":4321")', 'app.run(host="0.0.0.0", port=4321)', "server.port=4321", "server:\n  port: ${P:4321}",
        'const port = process.env.PORT || 4321;', 'os.getenv("PORT", "4321")', "int(os.environ.get('SERVER_PORT', 4321))",
    ],
)  # fmt: skip
def test_by_its_source(text: str) -> None:
    assert listening_ports(service({}), "", source(text)) == {4321: "its source, main.go"}


@pytest.mark.parametrize(
    "text",
    ["process.env.DB_PORT || 5432", "redis.connect(6379)", "client:\n  port: 5432", "queue.listen('x')", "app.listen(7)"],
)  # fmt: skip
def test_the_twins_that_are_other_ports(text: str) -> None:
    assert listening_ports(service({}), "", source(text)) == {}


def test_a_file_of_several_services_says_nothing_of_one() -> None:
    assert listening_ports(service({}), "", (Text("x", "app.listen(4321)", "shared"),)) == {}
    assert listening_ports(service({}), "", (Text("x.json", "app.listen(4321)", "mounted"),)) == {}
    assert listening_ports(service({}), "", (Text("x.js", "app.listen(4321)", "mounted"),)) == {
        4321: "its source, x.js"
    }


def test_by_a_label_for_a_proxy() -> None:
    labels = {"traefik.http.services.web.loadbalancer.server.port": "3000", "traefik.enable": "true", "port": "1"}
    assert labelled_ports(service({"labels": labels})) == {3000: "its labels"}
    assert labelled_ports(service({"labels": {"traefik.port": "80"}})) == {80: "its labels"}


@pytest.mark.parametrize(
    ("name", "raw", "dockerfile"),
    [
        ("mail-worker", {}, ""), ("worker2", {}, ""), ("db_migrations", {}, ""), ("createbuckets", {}, ""), ("cron", {}, ""),
        ("telegram-bot", {}, ""), ("x", {"image": "acme/import-worker:1"}, ""),
        ("x", {"container_name": "shop_scheduler"}, ""),
        ("x", {"image": "minio/mc"}, ""), ("x", {"restart": "no"}, ""), ("x", {"command": "celery -A x worker"}, ""),
        ("x", {"command": "bundle exec sidekiq"}, ""), ("x", {"command": "php artisan queue:work"}, ""),
        ("x", {"command": "sh -c 'wait db && alembic upgrade head'"}, ""), ("x", {"command": "python -m shop.consumer"}, ""),
        ("x", {}, 'FROM node\nCMD ["npm", "run", "build"]'), ("x", {"command": "tail -f /dev/null"}, ""),
        ("x", {"entrypoint": ["sh", "-c", "mc alias set x;\nmc mb x/y;\nexit 0;"]}, ""),
    ],
)  # fmt: skip
def test_a_worker_or_job_by_what_it_says(name: str, raw: dict[str, Any], dockerfile: str) -> None:
    assert is_worker(service(raw, name), dockerfile, ())


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("api", {}), ("web", {"image": "acme/shop"}), ("workspace", {}), ("jobs-api", {"command": "gunicorn jobs.wsgi"}),
        ("backend", {"command": "sh -c 'alembic upgrade head && python main.py'"}), ("botanic", {}), ("latest", {}),
        ("api", {"command": "sh -c 'mkdir -p /x && ./server'"}), ("api", {"restart": "on-failure"}),
        ("store", {"command": "--init-connect=x"}),
        ("migrate", {"command": "flask run"}),
    ],
)  # fmt: skip
def test_the_twins_that_may_well_listen(name: str, raw: dict[str, Any]) -> None:
    assert not is_worker(service(raw, name), "", ())


@pytest.mark.parametrize("name", ["client", "metrics-agent", "listener"])
def test_a_name_that_says_so_only_where_nobody_names_it(name: str) -> None:
    assert is_worker(service({}, name), "", (), named=False)
    assert not is_worker(service({}, name), "", ())


def test_who_fetches_messages_and_is_named_by_nobody() -> None:
    assert is_worker(service({}), "", (), named=False, consumes=True)
    assert not is_worker(service({}), "", (), named=False)
    assert not is_worker(service({}), "", (), consumes=True)
    assert not is_worker(service({}), "", source("app.listen(3000)"), named=False, consumes=True)


def test_a_command_of_its_own_that_starts_no_server_and_that_nobody_calls() -> None:
    loop = service({"command": "python -m shop.loop"})
    assert is_worker(loop, "", (), named=False)
    assert not is_worker(loop, "", ())
    assert not is_worker(service({"command": "./run --port 99"}), "", (), named=False)
    assert not is_worker(service({}), "", (), named=False)


@pytest.mark.parametrize("raw", [{"image": "nginx"}, {"image": "postgres", "restart": "no"}])
def test_the_server_of_a_known_image_whatever_its_name(raw: dict[str, Any]) -> None:
    assert not is_worker(service(raw, "test-job"), "", ())
    for command in ("--config.file=/x", "-c cron.database_name=x", "postgres -c shared_preload_libraries=pg_cron"):
        assert not is_worker(service({**raw, "command": command}, "test-job"), "", (), named=False)
    assert is_worker(service({**raw, "command": "migrate"}, "test-job"), "", ())
    assert is_worker(service(raw, "test-job"), "", (), completes=True)


@pytest.mark.parametrize("script", ["/init", "/usr/local/bin/init.sh"])
def test_a_servers_image_that_is_first_set_up(script: str) -> None:
    thing = service({"image": "acme/store"})
    dockerfile = f'FROM rabbitmq:3\nENTRYPOINT ["{script}"]'
    assert not is_worker(thing, dockerfile, source("x: 1", "x.conf"))
    assert not is_worker(service({"image": "rabbitmq", "command": script}), "", ())
    assert is_worker(thing, dockerfile.replace("rabbitmq:3", "acme/base"), ())
    assert is_worker(thing, dockerfile.replace(script, "/seed.sh"), ())
    assert is_worker(thing, dockerfile, (), completes=True)
    assert is_worker(service({}, "artisan"), "FROM php:8-fpm", ())
    assert is_worker(service({"command": "./loop"}), "FROM php:8-fpm", (), named=False)


def test_others_wait_for_its_end() -> None:
    assert is_worker(service({}), "", (), completes=True)


@pytest.mark.parametrize(("text", "worker"), [("while True: poll()", True), ("app = FastAPI()", False)])
def test_its_whole_source_opens_no_listener(text: str, *, worker: bool) -> None:
    thing = service({})
    assert is_worker(thing, "FROM python\nCMD python main.py", source(text)) is worker
    assert not is_worker(thing, "", source(text))
