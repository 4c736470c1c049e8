"""The status page in a real browser, of a real controller daemon: it loads, lives, survives, and can be used by all."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.site import LIMIT_S, MODEL, Daemon, Site
from tide_daemon.exit_codes import ExitCode
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk

pytestmark = pytest.mark.asyncio(loop_scope="package")
expect.set_options(timeout=LIMIT_S * 1000)
TOKEN = "0123456789abcdef-token"
TABLES = ("Servers", "Trainers", "Drafts", "Streams of the broker", "This daemon")


def row(page: Page, table: str, name: str) -> Locator:
    return page.get_by_role("table", name=table).get_by_role("row").filter(has=page.get_by_role("rowheader", name=name))


async def cell(page: Page, table: str, name: str, head: str) -> str:
    return await row(page, table, name).locator(f'[data-label="{head}"]').inner_text()


async def show_all_decisions(page: Page) -> None:
    """Not the newest only."""
    await expect(page.locator("#decisions li").first).to_be_visible()
    if await page.locator("#more").is_visible():
        await page.locator("#more").click()


async def until_speculating(page: Page) -> None:
    """Both servers run version 3, and more than plain comes out of it."""
    for node in ("n1", "gpu-2"):
        await expect(row(page, "Servers", node).locator('[data-label="Draft"]')).to_have_text("3")
        await expect(row(page, "Servers", node).locator('[data-label="Of plain"]')).to_have_text(
            re.compile(r"^1\.[1-9]")
        )


async def test_the_fleet_at_a_glance(open_page: OpenPage, site: Site) -> None:
    """Nodes, roles, versions, steps, accept length, tokens/s against plain; who leads; no complaint of the browser."""
    page = await open_page()
    await expect(page.get_by_role("status")).to_have_text("Live: ready")
    await until_speculating(page)
    for table in TABLES:
        await expect(page.get_by_role("table", name=table, exact=True)).to_be_visible()
    assert float(await cell(page, "Servers", "gpu-2", "Accept length")) > 1.5
    assert int(await cell(page, "Servers", "gpu-2", "Steps")) >= 1
    decodes, plain = [float(await cell(page, "Servers", "gpu-2", head)) for head in ("Decodes at", "Plain would")]
    assert decodes > 1.1 * plain > 0
    assert "of plain" in await cell(page, "Servers", "gpu-2", "Why")
    figures = await page.locator("#figures").inner_text()
    assert "2 of 2" in figures and "version 3" in figures and "pinned" in figures and "c1" in figures
    assert await cell(page, "This daemon", "role controller", "Is") == "running"
    assert page.complaints == []  # type: ignore[attr-defined]


ONLY_DRAFTS = """() => {
  const all = newest.fleet.decisions, drafts = all.filter((each) => each.kind === "drafts").length;
  const shown = document.querySelectorAll("#decisions > li").length;
  return drafts < all.length && shown === (showAll ? drafts : Math.min(FEW_DECISIONS, drafts));
}"""


async def test_drafts_and_decisions_have_their_reasons(open_page: OpenPage) -> None:
    """What became of each version and why; what was decided, when which event came, with its numbers."""
    page = await open_page()
    await expect(row(page, "Drafts", "3").locator('[data-label="Became"]')).to_contain_text("served")
    assert await cell(page, "Drafts", "1", "Became") == "refused"
    assert "gain" in await cell(page, "Drafts", "1", "Because")
    assert await cell(page, "Drafts", "2", "Became") == "left undecided"
    assert await cell(page, "Drafts", "2", "This one") == "1.31"
    decisions = page.locator("#decisions")
    await show_all_decisions(page)
    await expect(decisions).to_contain_text("asked to pin version 3 (to be looked at)")
    await expect(decisions).to_contain_text("is asked for version 3 and")
    await page.get_by_role("radio", name="drafts").check()
    await page.wait_for_function(ONLY_DRAFTS)
    await expect(decisions).to_contain_text("Pin, asked by")
    await expect(decisions).to_contain_text("version 1 was refused: gain")


async def test_it_updates_live(open_page: OpenPage) -> None:
    """A trainer's step and loss, seconds to finish and the charts move without a reload, and stand still on request."""
    page = await open_page()
    step = row(page, "Trainers", "t1").locator('[data-label="Step"]')
    await expect(step).to_have_text(re.compile(r"of 600"))
    await expect(row(page, "Trainers", "t1").locator('[data-label="To finish"]')).to_have_text(re.compile(r"\d+ s"))
    assert "chat 2.30, code 2.70" in await row(page, "Trainers", "t1").inner_text()
    seen = await step.inner_text()
    await expect(step).not_to_have_text(seen)
    for chart in ("accept", "tokens", "loss"):
        line = page.locator(f"#chart-{chart} path").first
        before = await line.get_attribute("d")
        await expect(line).not_to_have_attribute("d", before or "")
    await expect(page.locator("#chart-tokens .series").nth(1)).to_have_text(
        re.compile(r"plain, by the cost model: now \d")
    )
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("status")).to_have_text("Paused")
    seen = await step.inner_text()
    await page.wait_for_timeout(2500)
    assert await step.inner_text() == seen
    await page.get_by_role("button", name="Go on").click()
    await expect(step).not_to_have_text(seen)


async def test_the_command_line_says_the_same(open_page: OpenPage, site: Site) -> None:
    """`tide-daemon status` has the page's tokens/s against plain, from the same code."""
    page = await open_page()
    await until_speculating(page)
    words = [sys.executable, "-m", "tide_daemon", "status", "--url", site.nats.url, "--model", MODEL]
    done = await asyncio.to_thread(subprocess.run, [*words, "--json"], capture_output=True, text=True, check=False)
    shown = {item["node"]: item for item in json.loads(done.stdout)["servers"]}
    for node in ("n1", "gpu-2"):
        assert shown[node]["of_plain"] == pytest.approx(float(await cell(page, "Servers", node, "Of plain")), abs=0.15)


async def test_an_injected_fault_shows_with_what_to_do(open_page: OpenPage, site: Site) -> None:
    """An engine goes down, with words that would be markup elsewhere: they are text. It comes back: all is well."""
    page = await open_page()
    wrong = page.get_by_role("region", name="What is wrong, and what to do")
    await expect(wrong).to_contain_text("Nothing that this daemon knows of.")
    site.trouble = 'it crashed <img src="x" onerror="window.hurt = 1">'
    await expect(wrong).to_contain_text(f"gpu-2: the engine is down: {site.trouble}")
    await expect(wrong).to_contain_text("SGLang's own log says why")
    await expect(wrong).to_contain_text("Runbook: TideEngineRestarting")
    await expect(page).to_have_title(re.compile(r"^\(\d\) tide-daemon c1"))
    assert await page.evaluate("window.hurt") is None and await page.locator("img").count() == 0
    site.trouble = ""
    await expect(wrong).to_contain_text("Nothing that this daemon knows of.")


async def test_a_broker_that_is_killed_shows(open_page: OpenPage, site: Site) -> None:
    """The page lives on and says so; when the broker is back, so is everything."""
    page = await open_page()
    await expect(page.get_by_role("status")).to_have_text("Live: ready")
    site.nats.kill()
    try:
        await expect(page.locator("#problems")).to_contain_text("bus: ")
        await expect(page.locator("#problems")).to_contain_text("Is nats-server up")
        await expect(page.get_by_role("status")).to_have_text("Live: not ready")
    finally:
        site.nats.start()
    await expect(page.get_by_role("status")).to_have_text("Live: ready")
    step = row(page, "Trainers", "t1").locator('[data-label="Step"]')
    seen = await step.inner_text()
    await expect(step).not_to_have_text(seen)


async def test_it_survives_a_restart_of_the_daemon(open_page: OpenPage, site: Site) -> None:
    """kill -9: it says since when it hears nothing and keeps what it knew; after the start it goes on by itself."""
    page = await open_page()
    await until_speculating(page)
    await page.evaluate("window.unchanged = true")
    await show_all_decisions(page)
    pin = page.locator("#decisions li").filter(has_text="asked to pin version 3")
    await expect(pin).to_have_count(1)
    since = await cell(page, "This daemon", "up since", "Is")
    site.controller.kill()
    await expect(page.get_by_role("status")).to_have_text(re.compile(r"^Connection lost since \d.*trying again\.$"))
    assert await cell(page, "Servers", "gpu-2", "Draft") == "3"
    site.controller.start()
    await expect(page.get_by_role("status")).to_have_text("Live: ready")
    await expect(row(page, "This daemon", "up since").locator('[data-label="Is"]')).not_to_have_text(since)
    await until_speculating(page)
    await expect(pin).to_have_count(1)
    assert await page.evaluate("window.unchanged"), "it was not loaded anew"


@pytest.mark.parametrize("width", [390, 320, 1280])
async def test_no_width_needs_to_be_scrolled_sideways(open_page: OpenPage, width: int) -> None:
    """On a phone each cell carries its head, and a table is still one to a screen reader."""
    page = await open_page(viewport={"width": width, "height": 844}, is_mobile=width < 500)
    await until_speculating(page)
    await expect(page.locator("#chart-accept svg")).to_be_visible()
    assert await page.evaluate("document.scrollingElement.scrollWidth") <= width
    outside = await page.evaluate(
        "w => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > w + 1"
        " && !e.closest('thead')).map(e => e.outerHTML.slice(0, 80))",
        width,
    )
    assert outside == []
    await expect(page.get_by_role("table", name="Servers").get_by_role("columnheader", name="Of plain")).to_have_count(
        1
    )
    if width < 500:
        label = await page.locator('#servers td[data-label="Of plain"]').first.evaluate(
            "cell => getComputedStyle(cell, '::before').content"
        )
        assert label == '"Of plain"'


CONTRAST = """() => {
  const channel = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = rgb(text);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const ground = (e) => {
    const color = getComputedStyle(e).backgroundColor;
    return rgb(color)[3] !== 0 ? color : ground(e.parentElement);
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('.skip')) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize(("scheme", "ground"), [("dark", "rgb(16, 22, 28)"), ("light", "rgb(246, 248, 250)")])
async def test_dark_and_light_can_be_read(open_page: OpenPage, scheme: str, ground: str) -> None:
    """As the system asks; every text stands out from its ground by 4.5 to 1 or more (WCAG AA)."""
    page = await open_page(color_scheme=scheme)
    await until_speculating(page)
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    contrasts = await page.evaluate(CONTRAST)
    assert len(contrasts) > 50
    assert [item for item in contrasts if item[0] < 4.5] == []


FOCUSED = """() => {
  const e = document.activeElement;
  return e === document.body ? ["", ""] : [e.id || e.textContent.trim() || e.value, getComputedStyle(e).outlineStyle];
}"""


async def test_by_keyboard_alone(open_page: OpenPage) -> None:
    """Everything that can be used is reached by Tab, shows that it is, and does its work by keys."""
    page = await open_page()
    await until_speculating(page)
    reached = []
    for _ in range(12):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate(FOCUSED))
    names = [name for name, _ in reached]
    assert names[:3] == ["Skip to the content", "pause", "The charts as a table"]
    assert {"status", "ready", "metrics"} <= set(names)
    assert all(style != "none" for name, style in reached if name)
    await page.locator("#pause").focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("button", name="Go on", pressed=True)).to_be_focused()
    await page.keyboard.press("Space")
    await page.locator("#chart-details summary").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#chart-table tbody tr").first).to_contain_text(re.compile(r"\d"))
    await page.get_by_role("radio", name="everything").focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("radio", name="drafts")).to_be_checked()
    await page.reload()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"


async def test_a_servers_own_page(open_page: OpenPage, site: Site) -> None:
    """What one node knows of itself, its gain by its own cost model included."""
    page = await open_page(site.server.url)
    await expect(page.get_by_role("status")).to_have_text("Live: ready")
    await expect(page.locator("#figures")).to_contain_text(re.compile(r"of plain\s*1\.[1-9]"))
    assert await cell(page, "This daemon", "role server", "Is") == "running"
    await expect(page.locator("#chart-tokens path").first).to_have_attribute("d", re.compile("L"))
    assert page.complaints == []  # type: ignore[attr-defined]


async def test_nothing_leaves_the_host(open_page: OpenPage, site: Site) -> None:
    """The page asks for its own five files and nobody else, and its policy forbids more."""
    page = await open_page()
    await until_speculating(page)
    asked = [urlsplit(url) for url in page.requested]  # type: ignore[attr-defined]
    assert {url.netloc for url in asked} == {f"127.0.0.1:{site.controller.port}"}
    assert {url.path for url in asked} <= {"/", "/page.css", "/page.js", "/charts.js", "/events", "/favicon.ico"}
    refused = await page.evaluate("fetch('http://127.0.0.2:1/').then(() => 'sent', (error) => error.message)")
    assert refused == "Failed to fetch"
    assert any("Content Security Policy" in text for text in page.complaints)  # type: ignore[attr-defined]


async def test_no_prompt_and_no_token_of_one(open_page: OpenPage, site: Site) -> None:
    """Chunks with token ids pass by on the broker; nothing of them is on the page, in its news, or in /status."""
    chunks = []
    async with asyncio.timeout(LIMIT_S):
        async for message in site.bus.tail("tide.v1.hidden.>", since="all"):
            record = envelope.decode(message.data)
            assert isinstance(record, HiddenChunk)
            chunks.append(record)
            if len(chunks) == 5:
                break
    page = await open_page()
    await until_speculating(page)
    for url in (site.controller.url, site.server.url):
        status = await page.context.request.get(f"{url}status")
        text = await status.text() + await page.inner_text("body")
        text += await page.evaluate("JSON.stringify(newest)")
        for chunk in chunks:
            assert chunk.request_id not in text and chunk.request_id[:16] not in text
            assert ", ".join(str(token) for token in chunk.token_ids[:6]) not in text
        for word in ("token_ids", "prompt", "request_id", "topk_ids"):
            assert word not in text.lower(), word


async def test_beyond_loopback_it_takes_a_token(open_page: OpenPage, site: Site, tmp_path: Path) -> None:
    """Without one the daemon does not start. With one: a form, a cookie that no script sees, and a way out; by keys."""
    words = ["--role", "controller", "--set", f"bus.url={site.nats.url}", "--set", "status.host=0.0.0.0"]
    command = [sys.executable, "-m", "tide_daemon", *words]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE and "set status.token" in done.stderr
    settings = {"node.name": "c2", "status.host": "0.0.0.0", "status.token": TOKEN}
    daemon = Daemon("controller", tmp_path, site.nats.url, **settings)
    try:
        await site.until(lambda: "status_endpoint_opened" in (daemon.folder / "log").read_text(), "c2 listens")
        page = await open_page(daemon.url)
        assert page.url == f"{daemon.url}login"
        await expect(page.get_by_label("Token")).to_be_focused()
        await page.keyboard.type("not-the-token-of-it")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("That is not the token")
        await page.get_by_label("Token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Live: ready")
        await expect(row(page, "Servers", "gpu-2")).to_be_visible()
        assert page.url == daemon.url
        assert await page.evaluate("document.cookie") == ""
        daemon.kill()
        await expect(page.get_by_role("status")).to_contain_text("Connection lost")
        daemon.start()
        await expect(page.get_by_role("status")).to_have_text("Live: ready")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Token")).to_be_visible()
        await page.goto(daemon.url)
        assert page.url == f"{daemon.url}login"
    finally:
        daemon.end()


async def test_pictures(open_page: OpenPage, tmp_path: Path) -> None:
    """The README's pictures are taken here: TIDE_PICTURES=ops/pictures ops/test tests/browser"""
    folder = os.environ.get("TIDE_PICTURES")
    phone, screen = {"width": 390, "height": 844}, {"width": 1280, "height": 1500}
    for scheme, size, name in (("light", screen, "status-page.png"), ("dark", phone, "status-page-phone.png")):
        page = await open_page(color_scheme=scheme, viewport=size)
        await until_speculating(page)
        await expect(page.locator("#chart-loss path").first).to_have_attribute("d", re.compile("L"))
        if folder and size is screen:
            await page.wait_for_timeout(60_000)  # lines that are worth looking at
        await page.screenshot(path=tmp_path / name)
        assert (tmp_path / name).stat().st_size > 20_000
        if folder:
            shutil.copy(tmp_path / name, folder)
