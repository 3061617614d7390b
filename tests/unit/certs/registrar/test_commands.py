"""What people are told to run works where it is read: on the host of a container, with the places of `sidecar inject`."""

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner

from certs.cli.commands import main
from certs.registrar.commands import ANYWHERE, Commands

INJECTED = Commands("/home/me/my state")


def test_without_a_state_no_directory_is_named() -> None:
    assert ANYWHERE.enrolment("web") == "certs enrolment web"
    assert ANYWHERE.token("web") == "certs token web"
    assert ANYWHERE.revoke("web") == "certs revoke web"
    assert ANYWHERE.renew_issuing("ca") == "certs renew-issuing ca"


def test_with_one_all_is_named_and_a_token_is_a_secret() -> None:
    secret = "certs enrolment '/home/me/my state/ca' web --out-dir '/home/me/my state/enrolment' --force"
    assert INJECTED.enrolment("web") == INJECTED.token("web") == secret
    assert INJECTED.revoke("web") == "certs revoke '/home/me/my state/ca' web"
    renew = "certs renew-issuing '/home/me/my state/ca' --root-key '/home/me/my state/root/root.key'"
    assert INJECTED.renew_issuing("/var/lib/mesh-ca") == renew


@pytest.mark.parametrize("commands", [ANYWHERE, INJECTED])
def test_they_are_commands_that_certs_understands(commands: Commands) -> None:
    """It gets as far as the CA, which is not there."""
    told = (commands.enrolment("web"), commands.token("web"), commands.revoke("web"), commands.renew_issuing("ca"))
    for command in told:
        program, *words = shlex.split(command)
        said = CliRunner().invoke(main, words, prog_name=program)
        assert "no CA" in said.output or "is missing" in said.output, (command, said.output)
