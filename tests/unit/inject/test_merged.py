"""One finished file for one host, and what cannot be one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.merged import checks_text, is_wanted, merged_text, refuse_swarm
from tests.inject.applications import config


def test_it_is_made_anew_once_it_is_there() -> None:
    assert not is_wanted(None, asked=False)
    assert is_wanted(None, asked=True)
    assert is_wanted(merged_text("services: {}\n"), asked=False)


def test_each_sidecar_has_a_check_that_needs_no_quotes() -> None:
    """One builder leaves the image's own out, and one wrapper puts no quotes around its words."""
    found = json.loads(checks_text(["api-mesh", "db-mesh"]))["services"]
    assert found["api-mesh"] == found["db-mesh"]
    command, *words = found["api-mesh"]["healthcheck"]["test"]
    assert command == "CMD"
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_the_twin_nobody_waits_for_the_ca() -> None:
    assert json.loads(checks_text(["api-mesh"]))["services"]["mesh-ca"] == {"healthcheck": {"test": ["NONE"]}}


def test_the_twin_somebody_else_s_is_left_alone() -> None:
    assert not is_wanted("services: {}\n", asked=False)
    with pytest.raises(UsageError, match=r"^compose.merged.yaml: exists already"):
        is_wanted("services: {}\n", asked=True)


@pytest.mark.parametrize(
    ("service", "network", "why"),
    [
        ({}, {"driver": "overlay"}, "network 'back' has the driver overlay"),
        ({"deploy": {"mode": "global"}}, {}, "service 'web' has deploy.mode global"),
        (
            {"deploy": {"placement": {"constraints": ["node.role == manager"]}}},
            {},
            "service 'web' has deploy.placement",
        ),
        ({"deploy": {"endpoint_mode": "dnsrr"}}, {}, "service 'web' has deploy.endpoint_mode"),
    ],
)
def test_swarm(service: dict[str, Any], network: dict[str, Any], why: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^c.yaml: {why}, as for Swarm, .* fixed address, .*depends_on.*, and no image is built"
    ):
        refuse_swarm(config({"web": service}, {"back": network}), "c.yaml")


def test_the_twin_what_one_host_knows_too() -> None:
    deploy = {"mode": "replicated", "replicas": 2, "placement": {}, "resources": {"limits": {"cpus": "1"}}}
    refuse_swarm(config({"web": {"deploy": deploy}}, {"back": None, "front": {"driver": "bridge"}}), "c.yaml")
