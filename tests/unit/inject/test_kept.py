"""What runs keeps the image of its last run, and its stanza, unless it is recreated anyway."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from sidecar.inject.injection import OVERRIDE, Injection, inject
from sidecar.inject.kept import Earlier, is_stale, lets_in_more
from tests.inject.applications import OPTIONS, inputs
from tests.inject.bed import again, stanzas

SHOP: dict[str, Any] = {
    "web": {"expose": ["80"], "depends_on": ["db"]},
    "db": {"image": "redis"},
    "mq": {"expose": ["5"]},
}
JOB: dict[str, Any] = {"job": {"environment": {"URL": "redis://db"}}}
ALL = ("db-mesh", "mq-mesh", "web-mesh", "mesh-ca")


def later(first: Injection, services: dict[str, Any], **more: Any) -> Injection:
    """With another version's image."""
    return inject(replace(again(inputs(services), first), image="new", **more))


def images(injection: Injection) -> dict[str, str]:
    found = {name: re.search(r"image: .*:(\w+)\"?$", text, re.MULTILINE) for name, text in stanzas(injection).items()}
    return {name: it[1] for name, it in found.items() if it is not None}


def test_another_version_changes_nothing_that_runs() -> None:
    first = inject(inputs(SHOP))
    after = later(first, SHOP)
    assert after.files == first.files
    assert after.kept == ALL
    note = "db-mesh and 3 more keep their image of another version of sidecar, and need not restart: "
    assert note + "`sidecar inject --upgrade` renews one by one" in after.warnings
    assert inject(again(inputs(SHOP), first)).kept == ()


def test_a_new_service_has_the_new_image_and_its_build() -> None:
    first = inject(inputs(SHOP))
    after = later(first, {**SHOP, **JOB})
    assert images(after) == {**dict.fromkeys(ALL, "0123456789ab"), "job-mesh": "new"}
    assert "context: ./mesh/image/new" in stanzas(after)["job-mesh"]
    assert "context: ./mesh/image/0123456789ab" in stanzas(after)["mesh-ca"]
    assert "build" not in stanzas(after)["db-mesh"]
    assert {name: stanzas(after)[name] for name in ALL} == {name: stanzas(first)[name] for name in ALL}
    assert inject(replace(again(inputs({**SHOP, **JOB}), after), image="new")).files == after.files


@pytest.mark.parametrize(
    ("services", "more", "renewed"),
    [
        ({**SHOP, "mq": {"expose": ["5"], "profiles": ["p"]}}, {}, {"mq-mesh"}),
        (
            {**SHOP, "mq": {"expose": ["5"], "environment": {"URL": "redis://db:7000"}}},
            {},
            {"mq-mesh", "db-mesh", "web-mesh"},
        ),
        ({**SHOP, "mq": {"expose": ["5"], "logging": {"driver": "journald"}}}, {}, {"mq-mesh"}),
        ({**SHOP, "mq": {"expose": ["5"], "x-mesh": {"sidecar": {"access_log": "off"}}}}, {}, {"mq-mesh"}),
        (SHOP, {"options": replace(OPTIONS, state="/other")}, set(ALL)),
        (SHOP, {"options": replace(OPTIONS, user="5:5")}, set(ALL)),
        (SHOP, {"upgrade": frozenset({"mesh-ca", "db-mesh"})}, {"mesh-ca", "db-mesh"}),
        (SHOP, {"earlier": None}, set(ALL)),
    ],
)
def test_what_is_recreated_anyway_has_the_new_image(services: Any, more: Any, renewed: set[str]) -> None:
    after = later(inject(inputs(SHOP)), services, **more)
    assert {name for name, tag in images(after).items() if tag == "new"} == renewed
    assert set(after.kept) == set(ALL) - renewed
    assert after.files[OVERRIDE].count("    build:\n") == 1 + ("mesh-ca" not in renewed)
    assert inject(replace(again(inputs(services), after), image="new")).files == after.files


# -- from before the label, the limit of logs, and directories of secrets -------------------------------------------------


def aged(injection: Injection) -> Injection:
    """As an earlier version wrote it."""
    override = injection.files[OVERRIDE]
    override = re.sub(r"^    (labels|logging): .*\n", "", override, flags=re.MULTILINE)
    override = re.sub(r"^      - .*mesh-enrolment.*\n", "", override, flags=re.MULTILINE)
    override = re.sub(
        r"^  (\w+-mesh):\n    image",
        r"  \1:\n    secrets: [{source: \1-enrolment, target: enrolment}]\n    image",
        override,
        flags=re.MULTILINE,
    )
    names = (f"  {name}-mesh-enrolment: {{file: /state/enrolment/{name}}}\n" for name in injection.services)
    files = {
        path: text.replace("/etc/mesh-enrolment/secret", "/run/secrets/enrolment").replace("timeouts: {wait: 5m}\n", "")
        for path, text in injection.files.items()
    }
    return replace(injection, files={**files, OVERRIDE: override + "secrets:\n" + "".join(names)})


def test_an_earlier_version_s_sidecars_stay_as_they_are() -> None:
    first = aged(inject(inputs(SHOP)))
    assert "/run/secrets/enrolment" in first.files["mesh/sidecars/db.yaml"]
    after = later(first, SHOP)
    assert after.kept == ALL
    assert {path for path, text in after.files.items() if text != first.files[path]} <= {OVERRIDE}
    assert stanzas(after) == stanzas(first)


def test_they_are_renewed_one_by_one() -> None:
    first = aged(inject(inputs(SHOP)))
    after = later(first, SHOP, upgrade=frozenset({"db-mesh"}))
    assert set(after.kept) == set(ALL) - {"db-mesh"}
    secrets = [name for name in stanzas(after) if name.endswith("-enrolment")]
    assert secrets == ["mq-mesh-enrolment", "web-mesh-enrolment"]
    assert "secrets" not in stanzas(after)["db-mesh"]
    assert "logging" in stanzas(after)["db-mesh"]
    assert "/etc/mesh-enrolment/secret" in after.files["mesh/sidecars/db.yaml"]
    assert after.files["mesh/sidecars/mq.yaml"] == first.files["mesh/sidecars/mq.yaml"]
    whole = later(first, SHOP, upgrade=frozenset(ALL))
    fresh = inject(replace(again(inputs(SHOP), inject(inputs(SHOP))), image="new", upgrade=frozenset(ALL)))
    assert whole.files == fresh.files


def test_one_whose_wiring_is_gone_is_renewed() -> None:
    first = inject(inputs(SHOP))
    run = again(inputs(SHOP), first)
    assert run.earlier is not None
    wirings = {name: text for name, text in run.earlier.wirings.items() if name != "db-mesh"}
    after = inject(replace(run, image="new", earlier=Earlier(run.earlier.override, wirings)))
    assert set(after.kept) == set(ALL) - {"db-mesh"}


def test_a_kept_sidecar_that_lets_in_more_than_a_new_one_is_told() -> None:
    first = inject(inputs(SHOP))
    assert not any("gateway" in it for it in later(first, SHOP).warnings), "the twin"
    files = dict(first.files)
    for name in ("db", "web"):
        path = f"mesh/sidecars/{name}.yaml"
        files[path], count = re.subn(r"allow_from: \[[^]]*\]", 'allow_from: ["10.0.0.0/8"]', first.files[path])
        assert count
    older = replace(first, files=files)
    after = later(older, SHOP)
    assert after.kept == ALL
    told = (
        "db-mesh, web-mesh: until `sidecar inject --upgrade` renews them, they take what comes by a gateway for their apps' "
        "calls: the host's own programs, and what arrives at published ports"
    )
    assert told in after.warnings
    (one,) = [it for it in later(older, SHOP, upgrade=frozenset({"web-mesh"})).warnings if "gateway" in it]
    assert one.startswith(
        "db-mesh: until `sidecar inject --upgrade` renews it, it takes what comes by a gateway for its app's"
    )
    assert not any("gateway" in it for it in later(older, SHOP, upgrade=frozenset(ALL)).warnings)


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        (["10.0.0.0/24"], ["10.0.0.128/25"], True),
        (["10.0.0.128/25"], ["10.0.0.128/25"], False),
        (["10.0.0.129/32", "10.0.0.130/31"], ["10.0.0.128/25"], False),
        (["10.0.0.128/25"], ["10.0.0.129/32", "10.0.0.130/31"], True),
        (None, ["10.0.0.128/25"], True),
        (["anywhere"], ["10.0.0.128/25"], True),
    ],
)
def test_what_lets_in_more(before: list[str] | None, after: list[str], more: bool) -> None:
    def entry(allowed: list[str] | None) -> dict[str, Any]:
        return {"outbound": [{"listen": "10.0.0.2:5", **({} if allowed is None else {"allow_from": allowed})}]}

    assert lets_in_more(entry(before), entry(after)) is more
    assert lets_in_more(entry(before), {"outbound": []}) is False, "a listener that is gone is another matter"


def test_what_is_stale() -> None:
    override = inject(inputs(SHOP)).files[OVERRIDE]
    assert not is_stale(override, "shop-sidecar:0123456789ab")
    assert is_stale(override, "shop-sidecar:new")
