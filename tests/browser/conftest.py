"""One browser and one site for all tests of this folder. The browser is Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.browser.site import LIMIT_S, Site

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
OpenPage = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (Debian: package chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A fleet in which version 3 is served and speculation pays."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        await site.start()
        await site.judged()
        await site.deploy(3)
        yield site
    finally:
        await site.stop()


@pytest_asyncio.fixture(loop_scope="package")
async def open_page(browser: Browser, site: Site) -> AsyncIterator[OpenPage]:
    """Opens the controller's page in a context of its own; what it asked for and complained of is on the object."""
    contexts: list[BrowserContext] = []

    async def open_one(url: str = "", **options: Any) -> Page:
        context = await browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(LIMIT_S * 1000)
        page = await context.new_page()
        page.requested = []  # type: ignore[attr-defined]
        page.complaints = []  # type: ignore[attr-defined]
        page.on("request", lambda request: page.requested.append(request.url))  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.complaints.append(str(error)))  # type: ignore[attr-defined]
        complained = page.complaints  # type: ignore[attr-defined]
        page.on("console", lambda said: complained.append(said.text) if said.type == "error" else None)
        await page.goto(url or site.controller.url)
        return page

    yield open_one
    for context in contexts:
        await context.close()
