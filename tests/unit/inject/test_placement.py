"""Keys where an application could read them are refused; beside it, they are not."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.placement import readers_of, refuse_readable_state, writers_of
from tests.inject.applications import application


def check(state: str, service: dict[str, Any] | None = None, links: dict[str, str] | None = None) -> None:
    refuse_readable_state(
        application({"web": service}), state, "/home/me/shop", lambda path: (links or {}).get(path, path)
    )


def bind(source: str) -> dict[str, Any]:
    return {"volumes": [{"type": "bind", "source": source}]}


@pytest.mark.parametrize("state", ["/home/me/shop", "/home/me/shop/keys", "/home/me", "/"])
def test_not_outside_of_the_project(state: str) -> None:
    with pytest.raises(UsageError, match="is not outside of the project"):
        check(state)


@pytest.mark.parametrize("source", ["/home/me/keys", "/home/me/.local/state", "/home/me/keys/ca"])
def test_in_a_mount_or_around_one(source: str) -> None:
    state = "/home/me/.local/state/sidecar/shop" if "state" in source else "/home/me/keys"
    with pytest.raises(UsageError, match="service 'web' mounts"):
        check(state, bind(source))


@pytest.mark.parametrize("source", ["/", "/home", "/home/me", "/root"])
def test_what_looks_after_the_whole_machine_is_told_and_stops_nothing(source: str) -> None:
    state = "/root/keys" if source == "/root" else "/home/me/keys"
    services: dict[str, Any] = {"backup": bind(source), "web": bind("/srv/data"), "clock": bind("/etc/localtime")}
    refuse_readable_state(application(services), state, "/home/me/shop", str)
    assert readers_of(application(services), state, "/home/me/shop", str) == (("backup", source),)


@pytest.mark.parametrize("source", ["/proc", "/sys", "/var/run", "/var/lib/docker", "/dev/disk"])
def test_the_twin_that_holds_no_key(source: str) -> None:
    check("/home/me/keys", bind(source))
    assert readers_of(application({"web": bind(source)}), "/home/me/keys", "/home/me/shop", str) == ()


def test_an_image_of_the_whole_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="service 'web' is built from /home"):
        check("/home/me/keys", {"build": {"context": "/home"}})


@pytest.mark.parametrize(
    "build", [{"context": "/home/me"}, {"context": "/x", "additional_contexts": {"a": "/home/me/keys"}}]
)
def test_in_a_build_context(build: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="service 'web' is built from"):
        check("/home/me/keys", {"build": build})


def test_by_a_symlink() -> None:
    with pytest.raises(UsageError, match="mounts /data"):
        check("/home/me/keys", bind("/data"), {"/data": "/home/me/keys"})
    with pytest.raises(UsageError, match="not outside"):
        check("/state", links={"/state": "/home/me/shop/x"})


@pytest.mark.parametrize("state", ["/a$b", "/a}b", "/a\nb", "/a\x07"])
def test_a_name_that_compose_would_read_otherwise(state: str) -> None:
    with pytest.raises(UsageError, match="a character that Compose"):
        check(state)


def test_the_twins_that_nobody_can_read() -> None:
    check("/home/me/keys")
    check("/home/me/keys", bind("/home/me/key"))
    check("/home/me/keys", bind("/home/me/shop"))
    check("/home/me/keys", {"build": {"context": "https://example.test/x.git"}})
    check("/home/me/shop-keys")


def test_who_could_change_the_policy() -> None:
    read_only = {"volumes": [{"type": "bind", "source": "/", "read_only": True}]}
    services = {"a": bind("/home/me/shop"), "b": bind("/home"), "c": bind("/home/me/shop/src"), "d": read_only}
    assert writers_of(application(services), "/home/me/shop", str) == ("a", "b")
