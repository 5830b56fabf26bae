"""How the page's tests start Chromium, drive the page, and speak on the wire for the server."""

import asyncio
import shutil
from typing import Any

from playwright.async_api import Page, expect

from tests.browser.scripted_server import ScriptedServer

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
]
NO_MICROPHONE = "void (navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s') })"


async def call(server: ScriptedServer, page: Page) -> None:
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect_state(page, "listening")
    async with asyncio.timeout(10):
        await server.opened.wait()  # Chromium takes its channel for open before the server has seen it


async def expect_state(page: Page, state: str) -> None:
    await expect(page.locator("body")).to_have_attribute("data-state", state, timeout=10_000)


async def received(server: ScriptedServer, kind: str, n: int) -> None:
    """Wait until the page has sent `n` events of a kind."""
    async with asyncio.timeout(10):
        while sum(event["type"] == kind for event in server.received) < n:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)


async def hear_heartbeat(server: ScriptedServer) -> None:
    async with asyncio.timeout(10):
        await server.beaten.wait()


def speak(server: ScriptedServer, item_id: str, stable: str, tail: str) -> None:
    server.send("input_audio_buffer.speech_started", item_id=item_id, audio_start_ms=0)
    server.send("parley.partial", item_id=item_id, stable=stable, tail=tail)


def finish_speaking(server: ScriptedServer, item_id: str, transcript: str, *, previous: str | None = None) -> None:
    server.send("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=900)
    server.send("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous)
    server.send(
        "conversation.item.input_audio_transcription.completed", item_id=item_id, content_index=0, transcript=transcript
    )


def begin_reply(server: ScriptedServer, number: int, text: str, *, previous: str | None = None) -> None:
    reply = {"response_id": f"resp_{number}"}
    item: dict[str, Any] = {"id": f"agent_{number}", "type": "message", "role": "assistant", "content": []}
    server.send("response.created", response={"id": f"resp_{number}"})
    server.send("response.output_item.added", **reply, output_index=0, item=item)
    server.send("conversation.item.added", previous_item_id=previous, item=item)
    server.send("output_audio_buffer.started", **reply)
    server.send("response.output_audio_transcript.delta", **reply, item_id=f"agent_{number}", delta=text)
