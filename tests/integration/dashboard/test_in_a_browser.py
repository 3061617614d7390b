"""The dashboard in real Chromium, used as a person uses it: looked at, clicked, walked through by keyboard; well, attacked,
and with reports that an attacker wrote. What it shows is made by the product's own code of documents as a CA shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.host.clock import utc_now
from tests.beds.browser import Browser, browser, needs_browser
from tests.beds.dashboard import (
    Shown,
    dashboard,
    denied,
    entry,
    in_plaintext,
    inbound,
    iso,
    large,
    mitm,
    refusal,
    shop,
    shown,
    twin,
)

pytestmark = needs_browser
PICTURES = os.environ.get("DASHBOARD_PICTURES")
"""A directory: `make screenshots` has README's pictures made there."""

HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "\"'><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "a\u202ecod.exe",
    "\x1b[2J\x00\r\n",
    "event: change\ndata: {}\n\n",
    "${window.hacked=1}{{constructor.constructor('window.hacked=1')()}}",
    "__proto__",
    "constructor",
    "toString",
    "é" * 10_000,
]


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as one:
        yield one


def healthy(one: Shown, **changes: Any) -> None:
    """Two looks, ten seconds apart, so that there are rates."""
    now = utc_now().replace(microsecond=0)
    one.show(shop(now - timedelta(seconds=10), 1000), now)
    one.show(shop(now, 1137, **changes), now)


async def looked_at(window: Browser, one: Shown, words: str, *, dark: bool = False) -> str:
    window.prefer(dark=dark)
    window.size(1440, 1000)
    await window.open(one.url)
    return await window.until("#verdict-text", words)


async def well(window: Browser) -> None:
    """Nothing was wrong in the page, and nothing was asked of anybody else."""
    assert await window.complaints() == []
    assert await window.run("return window.hacked ?? null") is None
    origins = {"/".join(url.split("/")[:3]) for url in await window.requests()} - {"about:blank", "data:,"}
    assert all(origin.startswith("http://127.0.0.1:") for origin in origins), origins


async def test_a_healthy_mesh_answers_the_four_questions(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one)
        assert (await looked_at(window, one, "All is well")).startswith(
            "All is well: all that the sidecars of 5 services let in is mutual TLS 1.3, nothing refused"
        )
        cards = await window.text("#questions")
        assert "Yes: all that the sidecars of 5 services let in is mutual TLS 1.3." in cards
        assert "api → cache, web → api, api → db, reporting → api." in cards
        assert "Nothing in the last 15 minutes, and no alarm." in cards
        assert "certificate in 50 min. It renews itself in 20 min." in cards
        labels = await window.run("return [...document.querySelectorAll('.label text')].map((one) => one.textContent)")
        assert sorted(labels) == ["0.6/s", "14/s", "27/s", "6.8/s"]
        assert await window.do(lambda: window.driver.title) == "✓ shop.internal"
        await well(window)


async def test_the_token_leaves_the_address_and_a_reload_still_works(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one)
        await looked_at(window, one, "All is well")
        address = await window.do(lambda: window.driver.current_url)
        assert "#" not in address
        await window.do(window.driver.refresh)
        await window.until("#verdict-text", "All is well")
        assert "Nothing was refused, as far as the sidecars remember." in await window.text("main"), "the twin"
        await window.run("sessionStorage.clear()")
        await window.do(window.driver.refresh)
        await window.until("#fault", "the address has a token behind its #")
        assert "shop" not in await window.text("main")
        assert "Nothing was refused" not in await window.text("main"), "of a mesh of which nothing is known"
        assert any("401" in message for message in await window.complaints())


async def test_a_denied_caller_with_its_words_and_what_to_do(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one)
        await looked_at(window, one, "All is well")
        healthy(one, db={"refusals": [denied(utc_now())]})
        await window.until(
            "#verdict-text", "reporting → db:postgres was refused. No sign of an attack"
        )  # without a reload
        assert await window.run("return document.querySelector('.line[data-state=refused] title').textContent") == (
            "reporting → db: refused"
        )
        await window.click("#refused summary")
        more = await window.until("#refused .more", "What to do")
        assert "no attack by itself" in more
        assert "reporting" in more
        await well(window)


async def test_somebody_in_the_middle(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one, alarms={"current": [mitm(utc_now())]})
        text = await looked_at(window, one, "This may be an attack")
        assert "something answers in cache's place" in text
        labels = await window.run("return [...document.querySelectorAll('.label text')].map((one) => one.textContent)")
        assert sorted(labels) == ["0.6/s", "14/s", "6.8/s", "ALARM"]  # not "27/s, alarm": those are calls
        assert await window.run("return document.querySelector('#verdict').dataset.state") == "bad"
        assert "ALARM" in await window.text("#refused summary")
        await window.click("#refused summary")
        more = await window.until("#refused .more", "What to do")
        assert more.index("sidecar explain") < more.index("find out who has the address 10.0.0.7:6379")
        assert "the sidecar says" in more
        assert "spiffe://shop.internal/cache" in more
        await well(window)


async def test_a_twin(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one, alarms={"current": [twin(utc_now())]})
        await looked_at(window, one, "a certificate of spiffe://shop.internal/api is in use at 10.0.0.66")
        await well(window)


async def test_a_service_near_its_end_and_one_that_is_silent(window: Browser) -> None:
    now = utc_now()
    times = {"not_after": iso(now + timedelta(minutes=7)), "renews_at": iso(now - timedelta(minutes=23))}
    async with dashboard() as one:
        healthy(one, db={"certificate": times})
        await looked_at(window, one, "db's certificate was not renewed in time")
        assert "ends in 7 min" in await window.text("#questions")
        note = "return document.querySelector('.node[data-certificate=late] .note').textContent"
        assert await window.run(note) == "late, ends in 7 min"
        one.show(shown(entry("api", now), entry("db", now, late=240), now=now), now)
        await window.until("#verdict-text", "db does not report.")
        note = "return document.querySelector('.node[data-state=silent] .note')?.textContent ?? ''"
        assert "silent" in await window.run(note)


async def test_a_permissive_port(window: Browser) -> None:
    port = {"port": "postgres", "may_call": ["api"], "mode": "permissive", "until": "2099-12-31"}
    caller = {
        "port": "postgres",
        "address": "10.0.0.5",
        "name": "old.lan",
        "count": 4,
        "last": iso(utc_now()),
        "allowed": True,
    }
    async with dashboard() as one:
        edges = [inbound("api", "postgres", 500), in_plaintext("postgres", 4)]
        healthy(one, db={"inbound": [port], "plaintext": [caller], "edges": edges})
        await looked_at(window, one, "Not everything is encrypted: db:postgres takes plaintext.")
        assert await window.run("return document.querySelectorAll('.line[data-state=plaintext]').length") == 1
        await window.click(".node[aria-label^='db:']")
        details = await window.until("#details", "Still speaks plaintext")
        assert "old.lan (10.0.0.5) to postgres: 4 times" in details


async def test_the_whole_page_by_keyboard(window: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    async with dashboard() as one:
        healthy(one, db={"refusals": [denied(utc_now())]})
        await looked_at(window, one, "was refused")
        for _ in range(20):
            await window.press(Keys.TAB)
            if (await window.focused()).startswith("api:"):
                break
        assert await window.focused() == "api: well; details"
        await window.press(Keys.ENTER)
        await window.until("#details-title", "api")
        assert await window.focused() == "api"
        assert "99" not in await window.text("#details .close")
        await window.press(Keys.ESCAPE)
        assert await window.focused() == "api: well; details"
        assert await window.run("return document.querySelector('#details').hidden")
        await window.run("document.querySelector('#calls .choose').focus()")
        await window.press(Keys.SPACE)
        await window.until("#details-title", "reporting → db")
        healthy(one)  # while the details are open, the mesh goes on
        await window.until("#verdict-text", "All is well")


async def test_what_is_open_stays_open_and_the_focus_where_it_was(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one, db={"refusals": [denied(utc_now())]})
        await looked_at(window, one, "was refused")
        await window.click("#refused summary")
        healthy(one, db={"refusals": [denied(utc_now()) | {"count": 77}]})
        await window.until("#refused summary", "77 times")
        assert await window.run("return document.querySelector('#refused details').open")
        assert await window.run("return document.activeElement.matches('#refused summary')")


async def test_the_verdict_is_told_once_and_does_not_chatter(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one)
        await looked_at(window, one, "All is well")
        watch = (
            "window.said = 0; new MutationObserver((all) => { window.said += all.length; })"
            ".observe(document.querySelector('[role=status]'), {subtree: true, childList: true, characterData: true})"
        )
        await window.run(watch)
        for calls in range(1200, 1205):
            one.show(shop(utc_now(), calls), utc_now())
        await window.until("#calls", "web → api")
        await trio.sleep(1.2)  # a second of the page's own clock goes by
        assert await window.run("return window.said") == 0
        assert (
            await window.run("return document.querySelectorAll('[aria-live], [role=status], [role=alert]').length") == 1
        )


async def test_nothing_that_a_report_says_becomes_anything_but_text(window: Browser) -> None:
    now = utc_now()
    entries = []
    for number, text in enumerate(HOSTILE):
        one = refusal("policy_denied", text, now, peer=f"spiffe://shop.internal/{text}", message=text, address=text)
        other = refusal(text, text, now, direction="outbound", message=text)
        edges = [inbound(text, text, 5, rule=text), inbound(text, "http", 0, refused={text: 3, "expired": 1})]
        port = {"port": text, "may_call": [text], "mode": "permissive", "until": text}
        said: dict[str, Any] = {
            "edges": edges,
            "refusals": [one, other],
            "inbound": [port],
            "policy": text,
            "unwell": [text],
            "release": text,
        }
        entries.append(
            entry(f"s{number}", now, **said, plaintext=[{"port": text, "name": text, "address": text, "count": 1}])
        )
        entries.append(entry(text[:60] or "x", now))
    alarms = [
        mitm(now, id=f"{number}", service=text, upstream=text, message=text, next=text, presented={text[:50]: text})
        for number, text in enumerate(HOSTILE)
    ]
    async with dashboard(HOSTILE[0]) as page:
        page.show(shown(*entries, alarms=alarms, now=now, trust_domain=HOSTILE[0], services=HOSTILE), now)
        await looked_at(window, page, "This may be an attack")
        await window.run("for (const one of document.querySelectorAll('details')) one.open = true")
        await window.until("#services", "<script>window.hacked=1</script>")
        for name in ("s0", "s4"):
            await window.run(
                "[...document.querySelectorAll('#services .choose')].find((a) => a.textContent === arguments[0]).click()",
                name,
            )
            await window.until("#details-title", name)
        for selector in ("main img", "main script", "main iframe", "main a", "main svg[onload]", "[onerror]"):
            assert await window.run("return document.querySelectorAll(arguments[0]).length", selector) == 0
        everything = await window.run("return document.body.innerText")
        assert not set(everything) & set("\u202e\x1b\x00")
        assert await window.run("return ({}).set ?? null") is None
        width = await window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0
        await well(window)


async def test_scripts_that_are_not_ours_are_refused_by_the_browser(window: Browser) -> None:
    """The policy itself, tried: it is what is left if a mistake lets markup in."""
    async with dashboard() as one:
        healthy(one)
        await looked_at(window, one, "All is well")
        tried = (
            "try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>'); return 'taken'; }"
            " catch (error) { return error.name; }"
        )
        assert await window.run(tried) == "TypeError"
        await window.run(
            "const s = document.createElement('style'); s.textContent = 'body{display:none}'; document.body.append(s)"
        )
        assert await window.run("return getComputedStyle(document.body).display") == "block"
        assert any("Content Security Policy" in message for message in await window.complaints())


async def test_another_page_in_the_same_browser_learns_nothing(window: Browser) -> None:
    async with dashboard() as one, dashboard() as other:
        healthy(one)
        healthy(other)
        await looked_at(window, other, "All is well")
        asked = (
            "return fetch(arguments[0], {headers: arguments[1], mode: arguments[2]}).then((a) => a.type, (e) => e.name)"
        )
        token = {"Authorization": f"Bearer {one.url.partition('#')[2]}"}
        assert await window.run(asked, f"{one.origin}/events", token, "cors") == "TypeError"
        await window.complaints()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("what", ["healthy", "attacked", "hostile"])
async def test_everybody_can_use_it(window: Browser, what: str, *, dark: bool) -> None:
    """axe-core: contrast, names, roles; in both colour schemes, wide and narrow, with the details and all entries open."""
    now = utc_now()
    port = {"port": "redis", "may_call": ["api"], "mode": "permissive", "until": "2099-12-31"}
    every: dict[str, dict[str, Any]] = {
        "healthy": {},
        "attacked": {
            "alarms": {"current": [mitm(now), mitm(now, id="2", severity="notice"), twin(now)]},
            "db": {
                "refusals": [
                    denied(now),
                    refusal("no_certificate", "postgres", now),
                    refusal("overloaded", "postgres", now),
                ]
            },
            "cache": {"inbound": [port], "healthy": False, "unwell": ["its list is old"]},
            "web": {"policy": "old", "draining": True},
            "reporting": {"certificate": {"not_after": iso(now + timedelta(minutes=2))}},
        },
        "hostile": {"web": {"unwell": [HOSTILE[0] * 5], "policy": HOSTILE[1]}},
    }
    async with dashboard() as one:
        healthy(one, **every[what])
        await looked_at(window, one, "", dark=dark)
        await window.until("#services", "reporting")
        assert await window.violations() == []
        await window.click(".node[aria-label^='cache:']")
        await window.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert await window.violations() == []
        window.size(390, 844)
        assert await window.violations() == []
        assert await window.run("return document.documentElement.scrollWidth") <= 390
        for table in ("#calls", "#services"):  # a name is not broken into syllables
            assert await window.run(f"return document.querySelector('{table} th').offsetWidth") >= 120


async def test_thirty_services_and_two_hundred_calls_are_smooth(window: Browser) -> None:
    now = utc_now()
    async with dashboard() as one:
        one.show(large(now=now - timedelta(seconds=10), calls=100), now)
        one.show(large(now=now, calls=200), now)
        await looked_at(window, one, "All is well: all that the sidecars of 30 services")
        assert await window.run("return document.querySelectorAll('.line .path[d]').length") == 200
        measure = """
            const done = arguments[0], longest = [];
            new PerformanceObserver((list) => longest.push(...list.getEntries().map((one) => one.duration)))
                .observe({type: "longtask"});
            window.finish = () => done(longest);
        """
        await window.run(f"window.measured = new Promise((resolve) => {{ (function () {{ {measure} }})(resolve); }})")
        for number in range(1, 4):
            one.show(large(now=now + timedelta(seconds=5 * number), calls=200 + 60 * number), now)
            await window.until("#calls-count", "200")
            await trio.sleep(0.5)
        for name in ("service-00", "service-14"):
            await window.run(
                "document.querySelector(`.node[aria-label^='${arguments[0]}']`)"
                ".dispatchEvent(new PointerEvent('pointerenter'))",
                name,
            )
        longest = await window.do(
            lambda: window.driver.execute_async_script("window.measured.then(arguments[0]); window.finish()")
        )
        assert sum(longest) < 2000, longest  # of three updates of all 200, while other tests run here


async def test_a_ca_that_never_answered_is_not_said_to_have_refused_nothing(window: Browser) -> None:
    async with dashboard() as one:
        one.show({"error": "no CA answers there"})
        await looked_at(window, one, "The CA does not answer")
        assert "Nothing was refused" not in await window.text("main")
        await well(window)


async def test_when_the_dashboard_ends_the_page_says_so(window: Browser) -> None:
    async with dashboard() as one:
        healthy(one)
        await looked_at(window, one, "All is well")
        one.show({"error": "no CA answers there"})
        await window.until("#fault", "no CA answers there")
        assert (await window.text("#verdict-text")).startswith("The CA does not answer")
    await window.until("#live", "not connected")
    assert await window.text("#verdict-text") == "Not connected: what is below is of before."
    assert await window.run("return document.querySelector('#verdict').dataset.state") == "bad"
    assert await window.do(lambda: window.driver.title) == "✕ shop.internal"
    async with dashboard(port=int(one.origin.rpartition(":")[2])) as again:
        healthy(again)
        await window.until("#verdict-text", "All is well")
        assert await window.run("return document.querySelector('#verdict').dataset.state") == "good"
        assert await window.do(lambda: window.driver.title) == "✓ shop.internal"
    await window.complaints()


# -- README's pictures -----------------------------------------------------------------------------------------------------


async def test_readme_s_pictures(window: Browser, tmp_path: Path) -> None:
    """`make screenshots`. Without it they are made all the same, and nobody keeps them."""
    directory = Path(PICTURES or tmp_path)
    now = utc_now()
    async with dashboard("sidecar dashboard") as one:
        healthy(one, db={"refusals": [denied(now) | {"count": 14}]}, alarms={"current": [mitm(now)]})
        for dark in (False, True):
            await looked_at(window, one, "This may be an attack", dark=dark)
            window.size(1280, 800)
            await trio.sleep(0.3)
            await window.picture(directory / f"dashboard-{'dark' if dark else 'light'}.webp")
        healthy(one)
        await looked_at(window, one, "All is well")
        window.size(1280, 660)
        await trio.sleep(0.3)
        await window.picture(directory / "dashboard-well.webp")
        window.size(390, 844, 2)
        await trio.sleep(0.3)
        await window.picture(directory / "dashboard-narrow.webp")
    sizes = {one: (directory / f"dashboard-{one}.webp").stat().st_size for one in ("light", "dark", "well", "narrow")}
    assert all(0 < size < 150_000 for size in sizes.values()), sizes
