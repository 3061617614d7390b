"""A real PostgreSQL that starts last, and a migration that waits for its port as scripts do, with no `depends_on`."""

from __future__ import annotations

import sys

from tests.beds.processes import Shop, free_port, output, running, sidecar_pair
from tests.integration.database import Database, owned_directory
from tests.protocols.programs import needs, program

pytestmark = needs("postgres", "initdb", "psql")

WAIT_FOR_IT = """
import socket, sys, time
refused = 0
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
        break
    except ConnectionRefusedError:
        refused += 1
        if refused == 3:
            print("waits", flush=True)
        time.sleep(0.05)
print("migrates", flush=True)
"""


async def test_a_migration_that_waits_for_the_port_finds_the_database_behind_it(shop: Shop) -> None:
    with owned_directory() as (path, as_owner):
        database = Database.make(path, as_owner)
        app = f"127.0.0.1:{database.port}"
        async with sidecar_pair(shop, app, service="db", port="redis", more="timeouts: {wait: 1h}\n") as (web, _):
            host, port = web.address("db:redis")
            async with running(sys.executable, "-c", WAIT_FOR_IT, host, str(port)) as script:
                await script.line("waits")
                assert "has not answered yet" in (await web.program.event("waiting"))["message"]
                async with database.serves():
                    await script.line("migrates")
                    sql = ("-h", host, "-p", str(port), "-U", "tester", "-d", "postgres", "-qAtX", "-c", "select 6 * 7")
                    assert await output(program("psql"), *sql) == "42\n"


async def test_the_twin_without_wait_the_script_believes_the_sidecar(shop: Shop) -> None:
    async with sidecar_pair(shop, f"127.0.0.1:{free_port()}", service="db", port="redis") as (web, _):
        host, port = web.address("db:redis")
        async with running(sys.executable, "-c", WAIT_FOR_IT, host, str(port)) as script:
            await script.line("migrates")
