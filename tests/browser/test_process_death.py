"""The page when the media process of its call dies: Chromium and our server, two media processes behind one port."""

import os
import signal

import pytest
from playwright.async_api import Browser, expect

from tests.browser.driving import CHROMIUM, expect_state
from tests.servers import media_processes, server

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.browser,
    pytest.mark.e2e,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

TWO = "[server]\nworkers = 2\n[call]\ngreeting = false\n"


async def test_a_caller_whose_process_died_is_called_again_by_the_page_itself(browser: Browser) -> None:
    async with server(TWO) as url:
        page = await browser.new_page()
        await page.goto(url)
        async with page.expect_response("**/v1/realtime/calls") as first:
            await page.get_by_role("button", name="Call", exact=True).click()
        call_id = (await (await first.value).header_value("location") or "").rpartition("/")[2]
        await expect_state(page, "listening")

        async with page.expect_response("**/v1/realtime/calls", timeout=30_000) as second:
            os.kill(media_processes(url)[int(call_id[4:6], 16)], signal.SIGKILL)
        await expect(page.locator("body")).to_have_attribute("data-state", "listening", timeout=30_000)
        await page.get_by_placeholder("Type a message").fill("a large latte")
        await page.keyboard.press("Enter")
        answers = page.locator(".message[data-role=agent]")
        await expect(answers).to_have_count(1, timeout=30_000)

        assert (await second.value).status == 201
        await page.close()
