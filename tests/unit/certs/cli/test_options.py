"""What the commands have in common: which CA is meant, where its store is, and that secrets are typed nowhere."""

from __future__ import annotations

from datetime import UTC, timedelta
from pathlib import Path

import pytest

from certs.cli import options
from sidecar.identity.reasons import UsageError
from tests.commands import everything, ran, refused, run

DOMAIN = ["--trust-domain", "shop.internal"]
NOBODY = "127.0.0.1:1"  # where no database listens


@pytest.fixture(autouse=True)
def _with_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE", "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    ran("init", "ca", *DOMAIN)


# -- which CA ----------------------------------------------------------------------------------------------------------


def test_the_ca_is_the_one_that_is_named_else_the_variable_s_else_here_else_in_ca(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran("init", "other", "--trust-domain", "other.internal")
    assert "shop.internal" in ran("audit")
    assert "other.internal" in ran("audit", variables={"CERTS_DIR": "other"})
    assert "shop.internal" in ran("audit", "ca", variables={"CERTS_DIR": "other"})
    monkeypatch.chdir("other")
    assert "other.internal" in ran("audit")
    assert "shop.internal" in ran("audit", variables={"CERTS_DIR": "../ca"})


def test_with_no_ca_anywhere_every_command_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for command in (
        ["audit"], ["list"], ["token", "web"], ["enrolment", "web"], ["revoke", "web"], ["revoke", "--serial", "1"],
        ["renew-issuing"], ["rotate-root"], ["serve", "--mesh", "mesh.yaml"],
    ):  # fmt: skip
        assert "name its directory, or set $CERTS_DIR" in refused(*command)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "none"], ["audit", "none", "--verify"], ["list", "none"], ["token", "none", "web"],
        ["enrolment", "none", "web"], ["enrolment", "none", "web", "--end"], ["revoke", "none", "web"],
        ["revoke", "none", "--serial", "1"], ["renew-issuing", "none"], ["rotate-root", "none"],
        ["issue", "none", "web", "--out", "web"], ["serve", "none", "--mesh", "mesh.yaml"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("there", [False, True])
def test_a_directory_without_a_ca_is_told_so_and_left_as_it_is(command: list[str], there: bool) -> None:
    if there:
        Path("none").mkdir()
    assert "none holds no CA" in refused(*command)
    assert list(Path("none").glob("*")) == []


@pytest.mark.parametrize("words", [["a", "b", "c"], ["ca", "web", "api"]])
@pytest.mark.parametrize("command", ["token", "enrolment", "revoke"])
def test_more_words_than_there_is_sense_for_are_answered_with_the_usage(command: str, words: list[str]) -> None:
    assert f"usage: certs {command} [DIRECTORY] SERVICE" in refused(command, *words)


# -- its store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ca:hunter2@{NOBODY}/mesh",
        f"postgresql://ca:hun/ter2@{NOBODY}/mesh",
        f"postgresql://:hunter2@{NOBODY}/mesh",
        f"postgresql://ca@{NOBODY}/mesh?password=hunter2",
        f"postgresql://ca@{NOBODY}/mesh?sslmode=require&password=hunter2",
        f"postgresql://ca@{NOBODY}/mesh?pass%77ord=hunter2",
        f"postgresql://ca@{NOBODY}/mesh?sslpassword=hunter2",
    ],
)
def test_a_password_is_refused_on_the_command_line_and_hidden_when_the_variable_has_it(url: str) -> None:
    typed = refused("list", "ca", "--store", url)
    assert "give the URL by $CERTS_STORE" in typed

    by_variable = refused("list", "ca", variables={"CERTS_STORE": url})
    assert "cannot open the store postgresql://" in by_variable  # it was tried
    assert NOBODY in by_variable

    for told in (typed, by_variable):
        assert "hunter2" not in told
        assert "ter2" not in told


@pytest.mark.parametrize("url", [f"postgresql://ca@{NOBODY}/mesh", f"postgresql://ca:@{NOBODY}/mesh"])
def test_a_url_without_a_password_may_be_typed(url: str) -> None:
    assert "cannot open the store" in refused("list", "ca", "--store", url)


@pytest.mark.parametrize("url", ["nonsense", "postgresql://ca@host:port/mesh", "://", "postgresql:hunter2"])
def test_what_is_no_url_is_not_echoed_as_it_may_have_a_password_in_it(url: str) -> None:
    for told in (refused("list", "ca", "--store", url), refused("list", "ca", variables={"CERTS_STORE": url})):
        assert told == "error: the store's URL cannot be read: write it as postgresql://user@host/database\n"


def test_a_database_of_another_kind_is_told_which_there_are() -> None:
    assert "mysql is not supported" in refused("list", "ca", "--store", "mysql://ca@127.0.0.1/mesh")


def test_a_file_that_is_no_store_is_told_so_and_left_as_it_is() -> None:
    before = everything(Path("ca"))
    assert "cannot open the store" in refused("list", "ca", "--store", "sqlite:///ca/root.pem")
    assert everything(Path("ca")) == before


def test_a_store_elsewhere_is_the_one_that_is_named_typed_or_by_variable() -> None:
    ran("token", "ca", "web", "--store", "sqlite:///other.db")
    assert "token_made" in ran("audit", "ca", "--store", "sqlite:///other.db")
    assert "token_made" in ran("audit", "ca", variables={"CERTS_STORE": "sqlite:///other.db"})
    assert "token_made" not in ran("audit", "ca")


def test_who_asks_what_was_done_is_not_answered_by_a_store_that_is_gone() -> None:
    for command in (["audit", "ca"], ["audit", "ca", "--verify"], ["list", "ca"]):
        assert run(*command).exit_code == 0
    for path in Path("ca").glob("store.db*"):
        path.unlink()
    for command in (["audit", "ca"], ["audit", "ca", "--verify"], ["list", "ca"]):
        assert "ca/store.db is missing: restore it from a copy" in refused(*command)
    assert not Path("ca/store.db").exists()


# -- passphrases -------------------------------------------------------------------------------------------------------


def test_a_passphrase_is_asked_for_twice_and_not_shown() -> None:
    made = run("init", "safe", *DOMAIN, "--encrypt", stdin="correct horse\ncorrect horse\n")
    assert made.exit_code == 0
    assert "horse" not in made.output
    assert "ENCRYPTED" in Path("safe/root.key").read_text()

    mistyped = run("init", "unsafe", *DOMAIN, "--encrypt", stdin="correct horse\ncorrect house\n")
    assert mistyped.exit_code != 0
    assert not Path("unsafe").exists()


@pytest.mark.parametrize(
    ("passphrase", "why"),
    [("seven77", "at least 8 characters"), ("x" * 1024, "at most 1023 bytes"), ("ü" * 512, "at most 1023 bytes")],
)
def test_a_passphrase_that_cannot_be_used_leaves_nothing_behind(passphrase: str, why: str) -> None:
    told = refused("init", "safe", *DOMAIN, "--encrypt", variables={"CERTS_NEW_PASSPHRASE": passphrase})
    assert why in told
    assert passphrase not in told
    assert not Path("safe").exists()


@pytest.mark.parametrize("passphrase", ["eight888", "x" * 1023, "ü" * 511, "no UTF-8: \udcff"])
def test_a_passphrase_opens_what_it_locked(passphrase: str) -> None:
    ran("init", "safe", *DOMAIN, "--encrypt", variables={"CERTS_NEW_PASSPHRASE": passphrase})
    ran("renew-issuing", "safe", variables={"CERTS_ROOT_PASSPHRASE": passphrase})
    wrong = refused("renew-issuing", "safe", variables={"CERTS_ROOT_PASSPHRASE": passphrase[:-1]})
    assert "cannot be read with this passphrase" in wrong
    assert passphrase[:-1] not in wrong


def test_an_encrypted_key_s_passphrase_is_asked_for_and_that_of_an_open_one_is_not() -> None:
    ran("init", "safe", *DOMAIN, "--encrypt", variables={"CERTS_NEW_PASSPHRASE": "correct horse"})
    asked = run("renew-issuing", "safe", stdin="correct horse\n")
    assert asked.exit_code == 0
    assert "passphrase of safe/root.key" in asked.stderr
    assert "horse" not in asked.output
    assert run("renew-issuing", "safe", stdin="wrong horse\n").exit_code == 2
    assert "passphrase" not in run("renew-issuing", "ca").stderr


# -- durations and the time --------------------------------------------------------------------------------------------


def test_a_mistaken_duration_is_told_by_the_option_s_name() -> None:
    assert refused("rotate-root", "ca", "--max-age", "soon").startswith("error: --max-age: 'soon' is not a duration")
    assert refused("issue", "ca", "web", "--out", "web", "--ttl", "0s").startswith("error: --ttl: '0s'")


def test_the_time_is_told_in_whole_seconds_of_utc() -> None:
    assert options.now().microsecond == 0
    assert options.now().utcoffset() == timedelta(0)
    assert options.now().tzinfo is UTC


def test_words_are_a_directory_and_a_name_or_a_name_alone() -> None:
    assert options.where(("somewhere", "web"), "") == (Path("somewhere"), "web")
    assert options.where(("web",), "") == (Path("ca"), "web")
    with pytest.raises(UsageError, match="usage: certs that"):
        options.where((), "certs that")
