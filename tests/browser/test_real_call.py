"""The page and the server together: Chromium with a recording as its microphone, the embedded engines behind."""

import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright, expect

from media_server.audio.chunk import Pcm, silence
from media_server.audio.resample import Resampler
from media_server.caller.demo import make_recordings
from media_server.caller.microphone import MICROPHONE_HZ
from tests.browser.driving import CHROMIUM, FLAGS
from tests.servers import server

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.browser,
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

BROWSER_HZ = 48_000
KEEP_THE_PEER = """
    const Real = RTCPeerConnection;
    window.RTCPeerConnection = class extends Real {
        constructor(...settings) { super(...settings); window.keptPeer = this; }
    };
"""
REPLY_ENERGY = """async () => {
    const stats = await window.keptPeer.getStats();
    for (const each of stats.values()) if (each.type === 'inbound-rtp') return each.totalAudioEnergy;
    return 0;
}"""


def write_microphone(path: Path, parts: list[Pcm]) -> None:
    """Write the caller's whole part as Chromium wants it: 48 kHz, 16 bits, mono."""
    pcm = Resampler(MICROPHONE_HZ, BROWSER_HZ).push(np.concatenate(parts), last=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(BROWSER_HZ)
        file.writeframes(pcm.tobytes())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def page(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    order, interruption = await make_recordings(["i want a small espresso", "cancel that please"])
    assert order.pcm is not None
    assert interruption.pcm is not None
    # The reply begins about 0.6 s after the order and goes on for 3 s; the interruption comes 1.2 s into it.
    parts = [silence(2 * MICROPHONE_HZ), order.pcm, silence(int(1.8 * MICROPHONE_HZ)), interruption.pcm]
    sound = tmp_path_factory.mktemp("sound") / "caller.wav"
    write_microphone(sound, [*parts, silence(60 * MICROPHONE_HZ)])
    async with server() as url, async_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={sound}%noloop"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = await browser.new_page()
        page.set_default_timeout(15_000)
        await page.add_init_script(KEEP_THE_PEER)
        await page.goto(url)
        yield page
        await browser.close()


async def text_of(page: Page, selector: str) -> str:
    return " ".join((await page.locator(selector).first.inner_text()).split())


async def test_a_call_from_the_page_is_heard_answered_and_interrupted(page: Page) -> None:
    await page.get_by_role("button", name="Call", exact=True).click()

    caller = page.locator(".message[data-role=caller]").first
    await expect(caller).to_have_attribute("data-status", "final", timeout=20_000)
    await expect(caller).to_contain_text("espresso")

    agent = page.locator(".message[data-role=agent]").first
    await expect(agent).to_contain_text("espresso")
    await expect(agent.locator(".spoken").first).not_to_be_empty()
    energy: Any = await page.evaluate(REPLY_ENERGY)
    assert energy > 0

    await expect(agent).to_have_attribute("data-status", "interrupted", timeout=15_000)
    spoken = await text_of(page, ".message[data-role=agent] .spoken")
    unspoken = await text_of(page, ".message[data-role=agent] .unspoken")
    assert spoken
    assert unspoken
