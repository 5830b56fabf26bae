"""The page shows what the wire tells, and says what went wrong: real Chromium, real WebRTC, scripted events."""

import asyncio
import shutil
import wave
from collections.abc import AsyncIterator
from typing import Any

import aioice.ice
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browser.scripted_server import ScriptedServer, serve

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

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one browser serves all tests
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


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


async def call(page: Page) -> None:
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect_state(page, "listening")


async def expect_state(page: Page, state: str) -> None:
    await expect(page.locator("body")).to_have_attribute("data-state", state, timeout=10_000)


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


async def test_the_callers_words_grow_while_they_speak_and_the_final_replaces_them(
    server: ScriptedServer, page: Page
) -> None:
    await call(page)

    speak(server, "user_1", "one large", "flat wide")

    message = page.locator("[data-item-id=user_1]")
    await expect(message.locator(".stable")).to_have_text("one large")
    await expect(message.locator(".tail")).to_have_text("flat wide")
    await expect_state(page, "hearing")
    finish_speaking(server, "user_1", "One large flat white.")
    await expect(message.locator(".words")).to_have_text("One large flat white.")
    await expect(message.locator(".tail")).to_have_count(0)
    await expect(message).to_have_attribute("data-role", "caller")
    await expect_state(page, "thinking")


async def test_text_from_outside_is_never_markup(server: ScriptedServer, page: Page) -> None:
    await call(page)

    begin_reply(server, 1, "<img src=x onerror=alert(1)>")

    await expect(page.locator("[data-item-id=agent_1] .words")).to_have_text("<img src=x onerror=alert(1)>")


async def test_what_was_spoken_is_told_from_what_is_only_written(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "Größe 🎈 eins, bitte sehr.")

    server.send("parley.spoken", response_id="resp_1", item_id="agent_1", chars=13)

    message = page.locator("[data-item-id=agent_1]")
    await expect(message.locator(".spoken")).to_have_text("Größe 🎈 eins,")
    await expect(message.locator(".unspoken")).to_have_text(" bitte sehr.")
    await expect_state(page, "speaking")
    server.send("response.done", response={"id": "resp_1", "status": "completed"})
    server.send("output_audio_buffer.stopped", response_id="resp_1")
    await expect(message.locator(".unspoken")).to_have_count(0)
    await expect_state(page, "listening")


async def test_a_cut_reply_keeps_what_was_heard_and_strikes_the_rest(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "One flat white. Anything else?")
    server.send("parley.spoken", response_id="resp_1", item_id="agent_1", chars=24)
    server.send("parley.duck", response_id="resp_1", ducked=True)
    await expect_state(page, "ducked")

    server.send("input_audio_buffer.speech_started", item_id="user_1", audio_start_ms=0)
    server.send("output_audio_buffer.cleared", response_id="resp_1")
    server.send("conversation.item.truncated", item_id="agent_1", content_index=0, audio_end_ms=1200)
    server.send("parley.heard", item_id="agent_1", text="One flat white.")
    server.send("response.done", response={"id": "resp_1", "status": "cancelled"})
    server.send("parley.barge_in", response_id="resp_1", duck_ms=34.0, cut_ms=160.0, silence_ms=178.2, ear_ms=None)

    message = page.locator("[data-item-id=agent_1]")
    await expect(message.locator(".spoken")).to_have_text("One flat white.")
    await expect(message.locator("s.unspoken")).to_have_text(" Anything else?")
    await expect(message).to_have_attribute("data-status", "interrupted")
    await expect(message.locator(".interruption")).to_have_text("Interrupted · silent in 178 ms")
    await expect(page.locator("#announcer")).to_contain_text("(interrupted)")
    await expect_state(page, "hearing")


async def test_items_stand_in_the_order_of_the_conversation(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "Hello.", previous=None)
    server.send("input_audio_buffer.speech_started", item_id="user_2", audio_start_ms=0)
    begin_reply(server, 2, "Right away.", previous="user_2")

    finish_speaking(server, "user_2", "A tea.", previous="agent_1")

    await expect(page.locator(".words")).to_have_text(["Hello.", "A tea.", "Right away."])


async def test_the_latency_of_a_turn_is_shown_and_summed_up(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "Hello.")

    for total_ms in (500.2, 700.0, 600.4, None):
        server.send(
            "parley.latency",
            response_id="resp_1",
            endpointing_ms=300.0,
            asr_final_ms=20.0,
            llm_first_token_ms=100.0,
            tts_first_audio_ms=30.0,
            first_packet_ms=200.0,
            voice_to_voice_ms=total_ms,
        )

    strip = page.locator("[data-item-id=agent_1] .latency")
    await expect(strip).to_have_attribute("data-voice-to-voice-ms", "600")
    await expect(strip.locator(".bar i")).to_have_count(5)
    await expect(strip.locator("[data-stage=rest_ms]").first).to_have_attribute("title", "Sentence and sending: 50 ms")
    await expect(page.locator("#summary-figure")).to_have_text("Answers in 600 ms")
    await page.locator("#summary > summary").click()
    await expect(page.locator("#summary-rows tr").first).to_have_text("Voice to voice600700")


async def test_a_typed_message_cuts_the_reply_and_asks_for_another(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "Let me tell you a story.")
    await expect_state(page, "speaking")

    await page.keyboard.press("/")
    await page.keyboard.type("Stop, please")
    await page.keyboard.press("Enter")

    await expect(page.locator(".message").last.locator(".words")).to_have_text("Stop, please")
    content = [{"type": "input_text", "text": "Stop, please"}]
    item = {"id": "user_9", "type": "message", "role": "user", "content": content}
    server.send("conversation.item.added", previous_item_id="agent_1", item=item)
    server.send(
        "error", error={"message": "nothing to cancel", "code": "x", "event_id": server.received[0]["event_id"]}
    )
    await expect(page.locator("[data-item-id=user_9] .words")).to_have_text("Stop, please")
    await expect(page.locator(".message")).to_have_count(2)
    await expect(page.locator("#notices p")).to_have_count(0)
    assert [event["type"] for event in server.received] == [
        "response.cancel",
        "output_audio_buffer.clear",
        "conversation.item.create",
        "response.create",
    ]
    assert server.received[2]["item"] == {"type": "message", "role": "user", "content": content}


async def test_typing_without_a_call_places_one_without_the_microphone(server: ScriptedServer, page: Page) -> None:
    await page.evaluate(NO_MICROPHONE % "NotFoundError")

    await page.keyboard.type("Good morning")
    await page.keyboard.press("Enter")

    await expect(page.locator(".words")).to_have_text("Good morning")
    await expect(page.get_by_role("button", name="Turn the microphone on")).to_be_visible()


async def test_space_calls_and_escape_hangs_up(server: ScriptedServer, page: Page) -> None:
    await page.keyboard.press("Space")
    await expect_state(page, "listening")

    async with page.expect_response("**/hangup"):
        await page.keyboard.press("Escape")

    await expect_state(page, "ended")
    assert server.hangups == ["/v1/realtime/calls/rtc_1/hangup"]


async def test_leaving_the_page_hangs_up(server: ScriptedServer, page: Page) -> None:
    await call(page)

    await page.goto("about:blank")
    async with asyncio.timeout(10):
        await server.hung_up.wait()

    assert server.hangups == ["/v1/realtime/calls/rtc_1/hangup"]


@pytest.mark.parametrize(
    ("name", "code"), [("NotAllowedError", "microphone_denied"), ("NotFoundError", "no_microphone")]
)
async def test_without_a_microphone_the_caller_may_type(
    server: ScriptedServer, page: Page, name: str, code: str
) -> None:
    await page.evaluate(NO_MICROPHONE % name)
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.locator("#problem")).to_have_attribute("data-code", code)

    await page.get_by_role("button", name="Call without a microphone").click()

    await expect(page.locator("#headline")).to_have_text("Type to talk")
    assert server.calls == 1


async def test_a_full_server_says_when_to_come_back(server: ScriptedServer, page: Page) -> None:
    refusal = {"error": {"message": "all 50 calls are taken", "code": "server_full"}}
    server.refuse = web.json_response(refusal, status=503, headers={"Retry-After": "2"})

    await page.get_by_role("button", name="Call", exact=True).click()

    await expect(page.locator("#problem")).to_have_attribute("data-code", "server_full")
    await expect(page.locator("#problem-retry")).to_have_text("Call again in 2 s")
    await expect(page.locator("#problem-retry")).to_be_enabled()
    await page.locator("#problem-retry").click()
    await expect_state(page, "listening")


async def test_a_warming_server_is_called_again_by_itself(server: ScriptedServer, page: Page) -> None:
    refusal = {"error": {"message": "models are loading", "code": "server_warming"}}
    server.refuse = web.json_response(refusal, status=503, headers={"Retry-After": "1"})

    await page.get_by_role("button", name="Call", exact=True).click()

    await expect(page.locator("#problem")).to_have_attribute("data-code", "server_warming")
    await expect_state(page, "listening")


async def test_a_server_with_keys_is_given_one(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response({"error": {"message": "no key"}}, status=401)
    await page.get_by_role("button", name="Call", exact=True).click()

    await page.get_by_label("Access key").fill("sk-test")
    async with page.expect_request("**/v1/realtime/calls") as request:
        await page.keyboard.press("Enter")

    await expect_state(page, "listening")
    assert (await request.value).headers["authorization"] == "Bearer sk-test"


async def test_a_lost_connection_is_called_again_once(server: ScriptedServer, page: Page) -> None:
    await call(page)
    begin_reply(server, 1, "Hello.")
    await hear_heartbeat(server)

    server.heartbeat = False

    await expect(page.locator("[data-role=divider]")).to_have_text("Reconnected")
    await expect(page.locator("[data-item-id=agent_1]")).to_have_attribute("data-status", "interrupted")
    await expect_state(page, "listening")
    server.beaten.clear()
    server.heartbeat = True
    await hear_heartbeat(server)
    server.heartbeat = False
    await expect(page.locator("#problem")).to_have_attribute("data-code", "lost", timeout=10_000)
    assert server.calls == 2


async def test_an_error_of_the_wire_is_a_passing_notice(server: ScriptedServer, page: Page) -> None:
    await call(page)

    server.send("error", error={"message": "the recogniser is busy", "code": "server_busy", "event_id": None})

    await expect(page.locator("#notices p")).to_have_text("the recogniser is busy")
    await expect_state(page, "listening")


async def test_another_microphone_is_taken_in_mid_call_and_remembered(server: ScriptedServer, page: Page) -> None:
    await call(page)
    picker = page.get_by_role("combobox", name="Microphone")
    await expect(picker.locator("option").nth(1)).to_be_attached()

    await picker.select_option(index=1)

    chosen = await picker.input_value()
    assert chosen != ""
    assert await page.evaluate("localStorage.getItem('parley.microphone')") == chosen
    await expect_state(page, "listening")
    await expect(page.locator("#notices p")).to_have_count(0)
    await page.reload()
    await call(page)
    await expect(picker).to_have_value(chosen)


async def test_a_muted_caller_is_told_so(server: ScriptedServer, page: Page) -> None:
    await call(page)

    await page.get_by_role("button", name="Mute the microphone").click()

    await expect(page.get_by_role("button", name="Unmute the microphone")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#headline")).to_have_text("You are muted")
