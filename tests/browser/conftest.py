"""One Chromium for all tests of a file, and for each test a scripted server and its page."""

import wave
from collections.abc import AsyncIterator

import aioice.ice
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.driving import CHROMIUM, FLAGS
from tests.browser.scripted_server import ScriptedServer, serve


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    # aioice never offers 127.0.0.1 by itself, and a test machine may have no other address.
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


@pytest_asyncio.fixture(loop_scope="module")
async def server(loopback: None) -> AsyncIterator[ScriptedServer]:
    async with serve() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    sound = tmp_path_factory.mktemp("sound") / "silence.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(2 * 48000))
    async with async_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={sound}"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(server: ScriptedServer, browser: Browser) -> AsyncIterator[Page]:
    page = await browser.new_page()
    page.set_default_timeout(10_000)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda line: mistakes.append(line.text) if "Content Security Policy" in line.text else None)
    await page.goto(server.url)
    yield page
    await page.close()
    assert mistakes == []
