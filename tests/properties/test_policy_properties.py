"""Invariant: nothing is allowed that an allow rule in force does not name, or that a deny rule in force does; a change that
is said to open nothing allows nothing new; a file's text, whatever it is, gives a value or a UsageError that starts with the
file's name."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime

from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.config.sidecar_yaml import Config
from sidecar.config.wiring import parse_config
from sidecar.documents.address import parse_address
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.decide import callers, decide
from sidecar.policy.mesh import Mesh, Pattern, Rule, parse_mesh
from sidecar.policy.names import Target
from sidecar.policy.opening import may_open

NOW = datetime(2026, 6, 1, tzinfo=UTC)

MESH_TEXT = """\
trust_domain: t
services:
  a: {ports: {x: 1, y: 2}, dev: {app: {x: 8081}, calls: {"b:z": 18080}}}
  b: {ports: {z: 3}}
  c:
policy:
  - {name: one, from: [a, "spiffe://t/b/*"], to: ["b:z"], until: 2027-01-31}
  - {name: two, from: "*", to: a, action: deny, mode: dry-run}
tests:
  - {from: c, to: "b", expect: deny}
max_leaf_ttl: 25h
"""
CONFIG_TEXT = """\
service: a
mesh: mesh.yaml
identity: {ca: "https://ca:8443", root: root.pem, state_dir: s}
inbound:
  - {port: x, listen: "0.0.0.0:8080", app: ["127.0.0.1:8081"], idle_timeout: 5m}
outbound:
  - {to: "b:z", listen: "10.0.0.1:6379", allow_from: [10.0.0.0/26], peers: ["b.mesh:6379"], device: eth1}
admin: {listen: "127.0.0.1:15000"}
timeouts: {drain: 3s}
"""
MESH = parse_mesh(MESH_TEXT, "mesh.yaml")
TARGETS = MESH.targets("*")

segments = st.sampled_from(["a", "b", "c", "a.b", "aXb", "A"])
paths = st.lists(segments, min_size=1, max_size=4)
pattern_segments = st.one_of(segments, st.sampled_from(["*", "**"]))
patterns = st.lists(pattern_segments, min_size=1, max_size=5).map(lambda it: Pattern(tuple(it)))
sources = st.builds(SpiffeId, st.sampled_from(["t", "t", "t", "u"]), paths.map(tuple))
targets = st.one_of(st.sampled_from(TARGETS), st.builds(Target, segments, st.sampled_from(["x", "z"])))


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    names = draw(st.lists(st.text("rst", min_size=1, max_size=3), unique=True, max_size=6))
    return [
        Rule(
            trust_domain="t",
            name=name,
            line=line,
            from_=("…",),
            to=("…",),
            identities=frozenset(draw(st.lists(paths.map(tuple), max_size=2))),
            patterns=tuple(draw(st.lists(patterns, max_size=2))),
            targets=frozenset(draw(st.lists(st.sampled_from(TARGETS), min_size=1))),
            action=draw(st.sampled_from(["allow", "deny"])),
            mode=draw(st.sampled_from(["enforce", "enforce", "dry-run"])),
            until=draw(st.sampled_from([None, None, date(2020, 1, 1), date(2026, 6, 1)])),
        )
        for line, name in enumerate(names, 1)
    ]


def with_rules(among: list[Rule]) -> Mesh:
    return dataclasses.replace(MESH, rules=tuple(among))


def allowed(among: list[Rule], source: SpiffeId, target: Target) -> bool:
    return decide(with_rules(among), source, target.service, target.port, NOW).allowed


@given(rules(), sources, targets, st.randoms())
def test_the_order_of_rules_never_matters(among: list[Rule], source: SpiffeId, target: Target, random: object) -> None:
    shuffled = list(among)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    decisions = {decide(with_rules(order), source, target.service, target.port, NOW) for order in (among, shuffled)}
    assert len(decisions) == 1


@given(rules(), sources, targets, st.data())
def test_one_more_deny_rule_never_allows_more(
    among: list[Rule], source: SpiffeId, target: Target, data: st.DataObject
) -> None:
    assume(among)
    *rest, extra = among
    more = [*rest, dataclasses.replace(extra, action="deny", mode=data.draw(st.sampled_from(["enforce", "dry-run"])))]
    assert allowed(more, source, target) <= allowed(rest, source, target)


@given(rules(), sources, targets)
def test_one_more_allow_rule_never_denies_more(among: list[Rule], source: SpiffeId, target: Target) -> None:
    assume(among)
    *rest, extra = among
    assert allowed([*rest, dataclasses.replace(extra, action="allow")], source, target) >= allowed(rest, source, target)


@given(rules(), sources, targets)
def test_a_dry_run_rule_never_changes_anything(among: list[Rule], source: SpiffeId, target: Target) -> None:
    enforced = [rule for rule in among if rule.mode == "enforce"]
    assert allowed(among, source, target) == allowed(enforced, source, target)


@given(rules(), sources, targets)
def test_the_index_finds_every_rule_that_fits_and_no_other(among: list[Rule], source: SpiffeId, target: Target) -> None:
    mesh = with_rules(among)
    assert mesh.rules_that_fit(source, target) == [rule for rule in among if rule.fits(source, target)]
    assert mesh.rules_for(target) == [rule for rule in among if target in rule.targets]


@given(sources, targets)
def test_an_empty_policy_denies_everything(source: SpiffeId, target: Target) -> None:
    assert not allowed([], source, target)


@given(rules(), sources, targets)
def test_what_is_allowed_is_allowed_by_the_rule_it_names(among: list[Rule], source: SpiffeId, target: Target) -> None:
    decision = decide(with_rules(among), source, target.service, target.port, NOW)
    if decision.allowed:
        [rule] = [rule for rule in among if rule.name == decision.rule]
        assert (rule.action, rule.mode, source.trust_domain) == ("allow", "enforce", "t")
        assert target in rule.targets
        named = [list(segments) for segments in [*rule.identities, *(pattern.segments for pattern in rule.patterns)]]
        assert any(naive_match(segments, list(source.segments)) for segments in named)
        assert rule.until is None or rule.until >= NOW.date()


@given(rules(), paths, st.sampled_from(TARGETS))
def test_whoever_is_allowed_is_listed_among_the_callers(among: list[Rule], path: list[str], target: Target) -> None:
    listed = callers(with_rules(among), target.service, target.port, NOW)
    source = SpiffeId("t", tuple(path))
    if allowed(among, source, target):
        patterns = [text.removeprefix("spiffe://t/").split("/") for text in listed if text.startswith("spiffe://")]
        assert source.service in listed or any(naive_match(pattern, path) for pattern in patterns)


@given(rules(), st.sampled_from(TARGETS))
def test_of_every_caller_that_is_listed_somebody_is_allowed(among: list[Rule], target: Target) -> None:
    for text in callers(with_rules(among), target.service, target.port, NOW):
        if text.startswith("spiffe://"):
            pattern = text.removeprefix("spiffe://t/").split("/")
            parts = ([["z"] * n for n in range(7)] if it == "**" else [[it.replace("*", "z")]] for it in pattern)
            found = (tuple(itertools.chain.from_iterable(run)) for run in itertools.product(*parts))
            assert any(allowed(among, SpiffeId("t", path), target) for path in found)
        else:
            assert allowed(among, SpiffeId("t", (text,)), target)


@st.composite
def changed(draw: st.DrawFn, before: list[Rule]) -> list[Rule]:
    """The rules after a few edits, of which most only close."""
    rules = list(before)
    for number in range(draw(st.integers(0, 3))):
        one = draw(st.sampled_from([*(draw(policies) or [ALL]), *rules, ALL]))
        extra = dataclasses.replace(one, name=f"new{number}")
        index = draw(st.integers(0, max(0, len(rules) - 1)))
        match draw(st.sampled_from(["drop", "deny", "narrow", "split", "add", "widen"])):
            case "deny":
                rules.append(dataclasses.replace(extra, action="deny", until=None))
            case "add":
                rules.append(extra)
            case _ if not rules:
                pass
            case "drop":
                del rules[index]
            case "narrow":
                rules[index] = dataclasses.replace(rules[index], identities=frozenset(), until=date(2020, 1, 1))
            case "split":
                one = rules[index]
                rules[index] = dataclasses.replace(one, patterns=())
                rules.append(dataclasses.replace(one, name=f"part{number}", identities=frozenset()))
            case "widen":
                rules[index] = dataclasses.replace(rules[index], patterns=(*rules[index].patterns, *extra.patterns))
    return rules


policies = rules()
ALL = Rule(
    trust_domain="t",
    name="all",
    line=1,
    from_=("…",),
    to=("…",),
    identities=frozenset(),
    patterns=(Pattern(("**",)),),
    targets=frozenset(TARGETS),
    action="allow",
    mode="enforce",
    until=None,
)
TIMES = [datetime(2019, 1, 1, tzinfo=UTC), NOW, datetime(2030, 1, 1, tzinfo=UTC)]


def everybody(among: Iterable[Rule]) -> set[SpiffeId]:
    """Somebody for each entry of a `from`, and some whom only wildcards name."""
    named = {path for rule in among for path in rule.identities}
    shown = {path for rule in among for one in rule.patterns for path in itertools.islice(one.samples(3), 20)}
    return {SpiffeId("t", path) for path in named | shown}


@given(policies.flatmap(lambda before: st.tuples(st.just(before), changed(before))))
def test_a_change_that_may_not_open_allows_nothing_new(change: tuple[list[Rule], list[Rule]]) -> None:
    old, new = map(with_rules, change)
    assume(not may_open(old, new))
    for source, target, now in itertools.product(everybody((*change[0], *change[1])), TARGETS, TIMES):
        before, after = (decide(one, source, target.service, target.port, now).allowed for one in (old, new))
        assert after <= before


def naive_match(pattern: list[str], path: list[str]) -> bool:
    """The definition, by recursion: no sets, no shortcuts."""
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(naive_match(rest, path[skipped:]) for skipped in range(len(path) + 1))
    return bool(path) and first in {"*", path[0]} and naive_match(rest, path[1:])


@given(patterns, paths)
def test_patterns_match_as_their_definition_says(pattern: Pattern, path: list[str]) -> None:
    assert pattern.matches(path) == naive_match(list(pattern.segments), path)


# --- any text at all -------------------------------------------------------------------------------------------------

wild_text = st.one_of(
    st.text(),
    st.text("[]{}:,-*&!|>'\"%@`#?~ \n\tab01.", max_size=60),
    st.binary().map(lambda it: it.decode("utf-8", "surrogateescape")),
    st.binary().map(lambda it: it.decode("latin-1")),
)
fragments = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "*",
                "null",
                "true",
                "5",
                "-1",
                "1.5",
                "[]",
                "{}",
                "[[]]",
                "{a: b}",
                "'",
                '"',
                "&x ",
                "*x",
                "!!int ",
                "!x ",
            ),
            *(
                "\n",
                "\t",
                "\x00",
                ":",
                "- ",
                "a: 1\n",
                "\n---\n",
                "...",
                "0.0.0.0:0",
                "[::]:80",
                "spiffe://t/**",
                '"\\ud800"',
            ),
        ]
    ),
    st.text(max_size=5),
    st.from_regex(re.compile(r"[0-9]{1,30}"), fullmatch=True),
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A valid file with up to three of its parts cut out and replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.one_of(st.integers(start, min(len(text), start + 12)), st.integers(start, len(text))))
        text = text[:start] + draw(fragments) + text[end:]
    return text


@st.composite
def with_other_tokens(draw: st.DrawFn, text: str) -> str:
    """A valid file with some of its values replaced: it mostly stays YAML."""
    tokens = re.split(r"([^\s{}\[\],:]+)", text)
    for index in draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=4)):
        tokens[index] = draw(fragments)
    return "".join(tokens)


def check_error(error: UsageError, filename: str) -> None:
    lines = str(error).split("\n")
    assert all(line.startswith(f"{filename}:") for line in lines)
    assert all(line.isprintable() for line in lines)
    for foreign in ("pydantic", "Input should", "Shape", "http://", "For further information"):
        assert foreign not in str(error)


@given(st.one_of(wild_text, mutated(MESH_TEXT), with_other_tokens(MESH_TEXT)))
def test_any_text_is_a_mesh_or_a_usage_error(text: str) -> None:
    try:
        assert isinstance(parse_mesh(text, "mesh.yaml"), Mesh)
    except UsageError as error:
        check_error(error, "mesh.yaml")


@given(st.one_of(wild_text, mutated(CONFIG_TEXT), with_other_tokens(CONFIG_TEXT)))
def test_any_text_is_a_config_or_a_usage_error(text: str) -> None:
    try:
        config = parse_config(text, "s.yaml", {}, MESH)
    except UsageError as error:
        check_error(error, "s.yaml")
    else:
        check_plaintext_listeners(config)


def check_plaintext_listeners(config: Config) -> None:
    """Whatever the text was: what is accepted is closed to neighbours."""
    for outbound in config.outbound:
        assert not outbound.listen.is_wildcard
        assert outbound.listen.is_loopback or outbound.allow_from


@given(
    st.dictionaries(
        st.sampled_from(["SIDECAR_SERVICE", "SIDECAR_TIMEOUTS_DRAIN", "SIDECAR_LIMITS_CONNECTIONS", "SIDECAR_X", "X"]),
        st.text(),
    )
)
def test_any_environment_is_a_config_or_a_usage_error(environ: dict[str, str]) -> None:
    try:
        parse_config(CONFIG_TEXT, "s.yaml", environ, MESH)
        told = ""
    except UsageError as error:
        told = str(error)
    assert all(line.startswith(("s.yaml:", "SIDECAR_")) for line in told.splitlines())


@given(st.one_of(st.text(), st.text("0123456789abx.:[]%-", max_size=20)))
def test_an_address_says_again_what_it_was_read_from(text: str) -> None:
    try:
        address = parse_address(text, listening=True)
    except ValueError:
        return
    assert parse_address(str(address), listening=True) == address
