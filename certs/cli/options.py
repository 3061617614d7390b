"""Options and arguments that several commands share: the CA's directory, its store, passphrases, the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from certs.authority import authority
from certs.store import store
from certs.store.store import Store
from sidecar.documents.durations import parse_duration
from sidecar.identity.reasons import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

DIRECTORY = click.Path(path_type=Path)
NEW_PASSPHRASE = "CERTS_NEW_PASSPHRASE"  # noqa: S105 (a variable's name)
_LONGEST_PASSPHRASE = 1023  # OpenSSL's limit


def _without_password(context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """Refuses a password on the command line, which every user can read (`ps`). Use the environment or ~/.pgpass."""
    typed = context.get_parameter_source(str(option.name)) is click.core.ParameterSource.COMMANDLINE
    if url is not None and typed and store.holds_password(url):
        raise UsageError("--store: others can read a password on the command line; give the URL by $CERTS_STORE")
    return url


store_option = click.option(
    "--store",
    "store_url",
    envvar="CERTS_STORE",
    metavar="URL",
    callback=_without_password,
    help="The CA's store, if not DIRECTORY/store.db: postgresql://user@host/database ($CERTS_STORE).",
)
root_key_option = click.option(
    "--root-key", type=DIRECTORY, metavar="FILE", help="The root's key, if it is not in DIRECTORY."
)


encrypt_option = click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt the new root's key with a passphrase ($CERTS_NEW_PASSPHRASE, or asked for).",
)


def new_passphrase() -> bytes:
    """The passphrase for a new root's key. Raises :class:`UsageError`."""
    given = os.environ.get(NEW_PASSPHRASE)
    text = given or click.prompt("passphrase for the root's key", hide_input=True, confirmation_prompt=True, err=True)
    if len(text) < 8:
        raise UsageError("a passphrase has at least 8 characters")
    secret = os.fsencode(text)  # the bytes as typed, whatever the terminal's encoding
    if len(secret) > _LONGEST_PASSPHRASE:
        raise UsageError(f"a passphrase has at most {_LONGEST_PASSPHRASE} bytes")
    return secret


def duration(_context: click.Context, option: click.Parameter, text: str) -> timedelta:
    """A callback for options like ``--ttl 1h``."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--{str(option.name).replace('_', '-')}: {error}") from error


def now() -> datetime:
    """The time in whole seconds, the resolution of certificates."""
    return datetime.now(UTC).replace(microsecond=0)


def where(words: tuple[str, ...], usage: str) -> tuple[Path, str]:
    """``[DIRECTORY] NAME`` as a directory and a name. Raises :class:`UsageError`."""
    if len(words) == 2:
        return Path(words[0]), words[1]
    if len(words) == 1:
        return directory(None), words[0]
    raise UsageError(f"usage: {usage}")


def directory(given: Path | None) -> Path:
    """The CA's directory, given or found. Raises :class:`UsageError`."""
    if given is not None:
        return given
    if os.environ.get("CERTS_DIR"):
        return Path(os.environ["CERTS_DIR"])
    for found in (Path(), Path("ca")):
        if (found / authority.ISSUING).exists():
            return found
    raise UsageError("there is no CA in this directory nor in ./ca: name its directory, or set $CERTS_DIR")


def store_url(directory: Path, given: str | None, *, there: bool = False) -> str:
    """The URL of the CA's store. ``there``: the store must exist, so that a report does not come from a new, empty store;
    otherwise opening the URL makes it. Raises :class:`UsageError` if there is no CA, or no store where one must exist."""
    if given:
        return given
    if not (directory / authority.ISSUING).exists():
        raise UsageError(f"{directory} holds no CA; make one: certs init {directory} --trust-domain …")
    if there and not (directory / authority.STORE).exists():
        raise UsageError(
            f"{directory / authority.STORE} is missing: restore it from a copy, or give its place: --store"
        )
    return store.file_url(directory / authority.STORE)


@contextmanager
def open_store(directory: Path, given: str | None, *, there: bool = False) -> Iterator[Store]:
    """Opens the CA's store for the block; ``there`` as in :func:`store_url`."""
    with store.opened(store_url(directory, given, there=there), clock=lambda: int(now().timestamp())) as opened:
        yield opened


def passphrase(key: Path, variable: str = "CERTS_ROOT_PASSPHRASE") -> bytes | None:
    """The passphrase of an encrypted key: of the environment, or from a prompt; None if the key needs none."""
    if not key.exists() or not authority.is_encrypted(key):
        return None
    given = os.environ.get(variable)
    return os.fsencode(given or click.prompt(f"passphrase of {key}", hide_input=True, err=True))
