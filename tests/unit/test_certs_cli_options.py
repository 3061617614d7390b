"""What the commands have in common: which directory, which store, whose passphrase, what time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from certs import authority
from certs.cli import options
from certs.store import file_url
from sidecar.reasons import UsageError
from tests.mini_ca import DOMAIN, NOW


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE", "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


def test_a_directory_that_is_given_is_taken() -> None:
    assert options.directory(Path("anywhere")) == Path("anywhere")


def test_one_that_is_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"no CA in this directory nor in \./ca: name its directory, or set \$CERTS_DIR"
    ):
        options.directory(None)
    authority.init(Path("ca"), DOMAIN, NOW)
    assert options.directory(None) == Path("ca")
    monkeypatch.setenv("CERTS_DIR", "elsewhere")
    assert options.directory(None) == Path("elsewhere")
    monkeypatch.delenv("CERTS_DIR")
    monkeypatch.chdir("ca")
    assert options.directory(None) == Path()


def test_words_are_a_service_or_a_directory_and_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_DIR", "found")
    assert options.where(("api",), "usage") == (Path("found"), "api")
    assert options.where(("ca", "api"), "usage") == (Path("ca"), "api")
    for words in ((), ("a", "b", "c")):
        with pytest.raises(UsageError, match="usage: certs token"):
            options.where(words, "certs token [DIRECTORY] SERVICE")


def test_the_store_is_the_directory_s_unless_another_is_given() -> None:
    authority.init(Path("ca"), DOMAIN, NOW)
    assert options.store_url(Path("ca"), None) == file_url(Path("ca/store.db"))
    assert options.store_url(Path("ca"), "postgresql://host/database") == "postgresql://host/database"
    with pytest.raises(UsageError, match="none holds no CA; make one: certs init none"):
        options.store_url(Path("none"), None)


def test_a_store_is_not_begun_where_there_is_no_ca() -> None:
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no CA"):
        options.store_url(Path("empty"), None)
    assert list(Path("empty").iterdir()) == []


def test_a_store_with_odd_characters_in_its_path() -> None:
    directory = Path("a b?c#d%20/ä")
    directory.mkdir(parents=True)
    authority.init(directory, DOMAIN, NOW)
    with options.open_store(directory, None) as store:
        store.write(lambda transaction: transaction.put("a", "b"))
    assert (directory / "store.db").is_file()
    with options.open_store(directory, None) as store:
        assert store.write(lambda transaction: transaction.get("a")) == "b"


def test_an_open_store_has_the_time_of_day() -> None:
    authority.init(Path("ca"), DOMAIN, NOW)
    with options.open_store(Path("ca"), None) as store:
        told = store.write(lambda transaction: transaction.now)
    assert abs(told - datetime.now(UTC).timestamp()) < 60
    assert options.now().microsecond == 0


def test_durations() -> None:
    @click.command()
    @click.option("--max-age", callback=options.duration, default="90m")
    def command(max_age: timedelta) -> None: ...

    option = command.params[0]
    context = click.Context(command)
    assert options.duration(context, option, "90m") == timedelta(minutes=90)
    for text in ("", "1", "-1h", "h", "1 fortnight"):
        with pytest.raises(UsageError, match=r"^--max-age: "):
            options.duration(context, option, text)


# -- passphrases -------------------------------------------------------------------------------------------------------


def test_a_passphrase_is_asked_for_only_where_there_is_an_encrypted_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_ROOT_PASSPHRASE", "from the environment")
    authority.init(Path("plain"), DOMAIN, NOW)
    authority.init(Path("sealed"), DOMAIN, NOW, passphrase=b"from the environment")
    assert options.passphrase(Path("none/root.key")) is None
    assert options.passphrase(Path("plain/root.key")) is None
    assert options.passphrase(Path("sealed/root.key")) == b"from the environment"


@pytest.mark.parametrize(("given", "good"), [("12345678", True), ("1234567", False), ("pässwörd", True)])
def test_a_new_one_has_at_least_8_characters(monkeypatch: pytest.MonkeyPatch, given: str, good: bool) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", given)
    if good:
        assert options.new_passphrase() == given.encode()
    else:
        with pytest.raises(UsageError, match="at least 8 characters"):
            options.new_passphrase()
