"""What several commands have in common: where the CA and its store are, and what time it is."""

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
_LONGEST_PASSPHRASE = 1023  # OpenSSL's limit


def _without_password(context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """A command line is everybody's to read (`ps`): a password may be in the environment, or in ~/.pgpass."""
    typed = context.get_parameter_source(str(option.name)) is click.core.ParameterSource.COMMANDLINE
    if url is not None and typed and store.holds_password(url):
        raise UsageError("--store: a password on the command line can be read by others; give the URL by $CERTS_STORE")
    return url


store_option = click.option(
    "--store",
    "store_url",
    envvar="CERTS_STORE",
    metavar="URL",
    callback=_without_password,
    help="Where the CA remembers, if not in DIRECTORY/store.db: postgresql://user@host/database ($CERTS_STORE).",
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
    given = os.environ.get("CERTS_NEW_PASSPHRASE")
    text = given or click.prompt("passphrase for the root's key", hide_input=True, confirmation_prompt=True, err=True)
    if len(text) < 8:
        raise UsageError("a passphrase has at least 8 characters")
    secret = os.fsencode(text)  # the bytes that were typed, whatever the terminal takes them for
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
    """The time, in whole seconds, as certificates count."""
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
    """The URL of the CA's store, which is made where there is none, unless it has to be ``there``: who asks what the CA has
    done is not told "nothing" by an empty one. None is made where no CA is. Raises :class:`UsageError`."""
    if given:
        return given
    if not (directory / authority.ISSUING).exists():
        raise UsageError(f"{directory} holds no CA; make one: certs init {directory} --trust-domain …")
    if there and not (directory / authority.STORE).exists():
        raise UsageError(
            f"{directory / authority.STORE} is missing: restore it from a copy, or say where it is: --store"
        )
    return store.file_url(directory / authority.STORE)


@contextmanager
def open_store(directory: Path, given: str | None, *, there: bool = False) -> Iterator[Store]:
    """The CA's store for the time of the block; ``there`` as in :func:`store_url`."""
    with store.opened(store_url(directory, given, there=there), clock=lambda: int(now().timestamp())) as opened:
        yield opened


def passphrase(key: Path) -> bytes | None:
    """The passphrase of an encrypted key: $CERTS_ROOT_PASSPHRASE, or asked for; None where none is needed."""
    if not key.exists() or not authority.is_encrypted(key):
        return None
    given = os.environ.get("CERTS_ROOT_PASSPHRASE")
    return os.fsencode(given or click.prompt(f"passphrase of {key}", hide_input=True, err=True))
