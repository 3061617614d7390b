"""Real Chromium looks at a dashboard, as a person does. Selenium drives it; axe-core says whether everybody can use it.

A test that needs it is skipped, by name, on a machine without the browser, its driver or these packages (`make browser`).
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.beds.patience import PATIENCE

_PACKAGES = ("selenium", "axe_playwright_python", "PIL")
_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
_missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
_missing += [name for name, found in (("chromium", _CHROMIUM), ("chromedriver", _DRIVER)) if found is None]
needs_browser = pytest.mark.skipif(bool(_missing), reason=f"needs {', '.join(_missing)}: `make browser`")

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


class Browser:
    """One window. All of it waits, so it is for threads: :meth:`do`."""

    def __init__(self, width: int = 1440, height: int = 1000) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = _CHROMIUM or ""
        for option in _OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(_DRIVER)
        self.driver: Any = webdriver.Chrome(options=options, service=service)
        self.size(width, height)

    def close(self) -> None:
        self.driver.quit()

    def size(self, width: int, height: int, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, *, dark: bool = False, calm: bool = True) -> None:
        """What the person's system says of colours and motion."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    async def do(self, act: Callable[..., Any], *words: Any) -> Any:
        with trio.fail_after(PATIENCE):
            return await trio.to_thread.run_sync(act, *words)

    async def open(self, url: str) -> None:
        await self.do(self.driver.get, "about:blank")  # another fragment alone would load nothing
        for log in ("browser", "performance"):  # of the page before
            await self.do(self.driver.get_log, log)
        await self.do(self.driver.get, url)

    async def run(self, script: str, *words: Any) -> Any:
        """What a script in the page returns."""
        return await self.do(lambda: self.driver.execute_script(script, *words))

    async def text(self, selector: str) -> str:
        return str(await self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    async def until(self, selector: str, words: str) -> str:
        """The text of what is there, once it has these words."""
        with trio.fail_after(PATIENCE):
            while words not in (found := await self.text(selector)):  # noqa: ASYNC110 (it is another process)
                await trio.sleep(0.05)
        return found

    async def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        await self.do(lambda: ActionChains(self.driver).send_keys(*keys).perform())

    async def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        def act() -> None:
            element = self.driver.find_element(By.CSS_SELECTOR, selector)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()

        await self.do(act)

    async def focused(self) -> str:
        return str(
            await self.run(
                "return document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
            )
        )

    async def complaints(self) -> list[str]:
        """What the browser itself found wrong: errors of scripts, of the policy, of what was loaded."""
        return [one["message"] for one in await self.do(self.driver.get_log, "browser")]

    async def requests(self) -> list[str]:
        """Every address that the page asked for."""
        found = []
        for one in await self.do(self.driver.get_log, "performance"):
            message = json.loads(one["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    async def violations(self) -> list[str]:
        """What axe-core finds: WCAG 2.2 A and AA, and its best practices."""
        found = importlib.util.find_spec("axe_playwright_python")
        assert found is not None
        assert found.submodule_search_locations is not None
        (place,) = found.submodule_search_locations
        axe = (Path(place) / "axe.min.js").read_text(encoding="utf-8")

        def act() -> list[str]:
            # By the driver, which the page's own policy does not bind.
            self.driver.execute_script(axe)
            self.driver.set_script_timeout(PATIENCE)
            answer = self.driver.execute_async_script(
                "axe.run(document, {resultTypes: ['violations']}).then(arguments[0])"
            )
            return [
                f"{one['id']}: {one['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
                for one in answer["violations"]
                for node in one["nodes"]
            ]

        return list(await self.do(act))

    async def picture(self, path: Path) -> None:
        """What the window shows, as it is and small: WebP without loss."""
        from PIL import Image

        data = await self.do(self.driver.get_screenshot_as_png)

        def write() -> None:
            with Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").save(path, lossless=True, quality=100, method=6)

        await self.do(write)


@contextmanager
def browser(width: int = 1440, height: int = 1000) -> Iterator[Browser]:
    one = Browser(width, height)
    try:
        yield one
    finally:
        one.close()
