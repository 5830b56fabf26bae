"""The page shows what the wire tells: real Chromium, real WebRTC, scripted events."""

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Page, expect

from media_server.config import load_config
from signaling.ice_servers import ice_servers
from tests.browser.driving import (
    CHROMIUM,
    begin_reply,
    call,
    expect_state,
    finish_speaking,
    speak,
)
from tests.browser.scripted_server import ScriptedServer
from tests.coturn import SECRET, needs_coturn, relay

RELAY_ONLY = """
void (RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) { super({ ...configuration, iceTransportPolicy: "relay" }); }
})
"""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one browser serves all tests
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


async def test_the_callers_words_grow_while_they_speak_and_the_final_replaces_them(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)

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


async def test_the_page_uses_the_servers_stun_server(server: ScriptedServer, page: Page) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stun:
        stun.bind(("127.0.0.1", 0))
        stun.setblocking(False)
        server.ice_servers = [{"urls": [f"stun:127.0.0.1:{stun.getsockname()[1]}"]}]
        await call(server, page)

        async with asyncio.timeout(10):
            request = await asyncio.get_running_loop().sock_recv(stun, 100)

    assert request[:2] == b"\0\1"  # RFC 8489 section 5: a Binding request


@needs_coturn
async def test_a_page_that_only_a_relay_lets_through_gets_its_call(
    server: ScriptedServer, page: Page, tmp_path: Path
) -> None:
    async with relay(tmp_path) as address:
        urls = f"turn:{address}?transport=tcp"
        config = load_config({}, flags={"webrtc.turn_urls": urls, "webrtc.turn_secret": SECRET}).config.webrtc
        server.ice_servers = ice_servers(config, now_s=datetime.now(UTC).timestamp(), caller_id="page")
        await page.evaluate(RELAY_ONLY)

        await call(server, page)

        speak(server, "user_1", "one", "tea")
        await expect(page.locator("[data-item-id=user_1] .stable")).to_have_text("one")


async def test_what_was_said_and_not_understood_has_its_place_in_the_conversation(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    server.send("input_audio_buffer.speech_started", item_id="user_1", audio_start_ms=0)

    finish_speaking(server, "user_1", "")
    begin_reply(server, 1, "Sorry?", previous="user_1")

    await expect(page.locator(".words")).to_have_text(["(not understood)", "Sorry?"])
    await expect(page.locator("[data-item-id=user_1]")).to_have_attribute("data-status", "failed")


async def test_text_from_outside_is_never_markup(server: ScriptedServer, page: Page) -> None:
    await call(server, page)

    begin_reply(server, 1, "<img src=x onerror=alert(1)>")

    await expect(page.locator("[data-item-id=agent_1] .words")).to_have_text("<img src=x onerror=alert(1)>")


async def test_what_was_spoken_is_told_from_what_is_only_written(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
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
    await call(server, page)
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
    await expect(page.locator("#captions")).to_contain_text("(interrupted)")
    await expect_state(page, "hearing")


async def test_items_stand_in_the_order_of_the_conversation(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "Hello.", previous=None)
    server.send("input_audio_buffer.speech_started", item_id="user_2", audio_start_ms=0)
    begin_reply(server, 2, "Right away.", previous="user_2")

    finish_speaking(server, "user_2", "A tea.", previous="agent_1")

    await expect(page.locator(".words")).to_have_text(["Hello.", "A tea.", "Right away."])


async def test_the_latency_of_a_turn_is_shown_and_summed_up(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
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


async def test_an_answer_that_had_to_wait_for_another_reply_says_so(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "One flat white.")
    speak(server, "user_1", "and a tea", "")
    finish_speaking(server, "user_1", "And a tea.", previous="agent_1")
    server.send("response.done", response={"id": "resp_1", "status": "completed"})
    server.send("output_audio_buffer.stopped", response_id="resp_1")

    begin_reply(server, 2, "And a tea.", previous="user_1")
    server.send("parley.latency", response_id="resp_2", first_packet_ms=3900.0, voice_to_voice_ms=4200.0)

    strip = page.locator("[data-item-id=agent_2] .latency")
    await expect(strip.locator("dt")).to_have_text("Wait for the other reply")


async def test_an_error_of_the_wire_is_a_passing_notice(server: ScriptedServer, page: Page) -> None:
    await call(server, page)

    server.send("error", error={"message": "the recogniser is busy", "code": "server_busy", "event_id": None})

    await expect(page.locator("#notices p")).to_have_text("the recogniser is busy")
    await expect_state(page, "listening")


async def test_a_cut_nobody_could_measure_is_simply_an_interruption(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "One flat white.")

    server.send("response.done", response={"id": "resp_1", "status": "cancelled"})
    server.send("parley.barge_in", response_id="resp_1", duck_ms=34.0, cut_ms=160.0, silence_ms=None, ear_ms=None)

    await expect(page.locator(".interruption")).to_have_attribute("title", "softer after 34 ms, cut after 160 ms")
    await expect(page.locator(".interruption")).to_have_text("Interrupted")


async def test_an_incomplete_reply_says_why_it_ends(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "Once upon a time")

    details = {"type": "incomplete", "reason": "max_output_tokens"}
    server.send("response.done", response={"id": "resp_1", "status": "incomplete", "status_details": details})

    await expect(page.locator("#notices p")).to_have_text("The reply grew too long and ends here.")


async def test_a_reply_is_read_out_once_it_has_been_spoken_to_its_end(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "One flat white.")
    server.send("response.done", response={"id": "resp_1", "status": "completed"})
    await expect(page.locator("[data-item-id=agent_1]")).to_have_attribute("data-status", "done")
    await expect(page.locator("#captions")).to_be_empty()

    server.send("output_audio_buffer.stopped", response_id="resp_1")

    await expect(page.locator("#captions p")).to_have_text("Parley: One flat white.")


async def test_of_a_cut_reply_only_what_was_heard_is_read_out(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "One flat white. Anything else?")
    server.send("parley.spoken", response_id="resp_1", item_id="agent_1", chars=24)
    server.send("output_audio_buffer.cleared", response_id="resp_1")
    server.send("conversation.item.truncated", item_id="agent_1", content_index=0, audio_end_ms=1200)
    await expect(page.locator("[data-item-id=agent_1]")).to_have_attribute("data-status", "interrupted")

    server.send("parley.heard", item_id="agent_1", text="One flat white.")

    await expect(page.locator("#captions p")).to_have_text("Parley: One flat white. (interrupted)")


async def test_a_reply_that_the_end_of_the_call_cut_is_read_out_as_far_as_it_came(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    begin_reply(server, 1, "One flat white. Anything else?")
    server.send("parley.spoken", response_id="resp_1", item_id="agent_1", chars=15)
    await expect(page.locator(".spoken")).to_have_text("One flat white.")

    await page.keyboard.press("Escape")

    await expect(page.locator("#captions p")).to_have_text("Parley: One flat white. (cut off)")
    await expect(page.locator(".measures")).to_have_text("Cut off")


async def test_words_that_were_not_recognised_are_read_out_as_such(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    server.send("input_audio_buffer.speech_started", item_id="user_1", audio_start_ms=0)
    server.send("input_audio_buffer.speech_stopped", item_id="user_1", audio_end_ms=900)

    server.send("conversation.item.input_audio_transcription.failed", item_id="user_1", content_index=0, error={})

    await expect(page.locator("#captions p")).to_have_text("You: (not understood)")


async def test_a_screen_reader_hears_how_the_call_stands_and_nothing_of_its_turns(
    server: ScriptedServer, page: Page
) -> None:
    told = page.locator("#progress")
    server.answering.clear()
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(told).to_have_text("Connecting")
    server.answering.set()
    await expect(told).to_have_text("Connected")
    begin_reply(server, 1, "Hello.")
    await expect_state(page, "speaking")
    await expect(told).to_have_text("Connected")
    await page.get_by_role("button", name="Mute the microphone").click()
    await expect(told).to_have_text("You are muted")

    await page.keyboard.press("Escape")

    await expect(told).to_contain_text("Call ended after 0:0")
    await expect(page.locator("[role=status]")).to_have_count(2)  # the other one holds the notices


@pytest.mark.parametrize(("width", "height"), [(640, 320), (320, 256)])
async def test_on_a_low_screen_everything_can_be_scrolled_to(
    server: ScriptedServer, page: Page, width: int, height: int
) -> None:
    await page.set_viewport_size({"width": width, "height": height})
    server.refuse = web.json_response({"error": {"message": "no key"}}, status=401)
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.locator("#problem")).to_be_visible()

    await page.mouse.move(20, 20)
    await page.mouse.wheel(0, 2000)

    await expect(page.get_by_label("Message")).to_be_in_viewport(ratio=1)
    await expect(page.get_by_role("button", name="Call", exact=True).last).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize(("width", "height"), [(360, 640), (844, 390), (320, 480), (1280, 800)])
async def test_the_start_page_fits_the_screen(server: ScriptedServer, page: Page, width: int, height: int) -> None:
    await page.emulate_media(reduced_motion="reduce")
    await page.set_viewport_size({"width": width, "height": height})

    too_long = "element => element.scrollHeight - element.clientHeight"
    assert await page.locator("main").evaluate(too_long) == 0
    assert await page.locator("body").evaluate(too_long) == 0
    await expect(page.get_by_label("Message")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("width", [320, 360])
async def test_on_a_narrow_screen_nothing_is_squeezed_or_leaves_its_margin(
    server: ScriptedServer, page: Page, width: int
) -> None:
    await page.emulate_media(reduced_motion="reduce")
    await page.set_viewport_size({"width": width, "height": 640})
    picker = await page.locator(".picker").bounding_box()
    await call(server, page)
    begin_reply(server, 1, "Hello.")
    server.send("parley.latency", response_id="resp_1", first_packet_ms=1200.0, voice_to_voice_ms=1500.0)
    await expect(page.locator("#summary")).to_be_visible()
    timer = await page.locator("#timer").bounding_box()

    assert picker is not None
    assert timer is not None
    assert (picker["width"], picker["height"]) == (46, 46)
    assert picker["x"] + 46 <= width - 16
    assert timer["x"] + timer["width"] == width - 16


async def test_the_keys_that_do_something_now_are_named(server: ScriptedServer, page: Page) -> None:
    keys = page.locator(".keys")
    assert (await keys.inner_text()).split() == ["Space", "call"]
    await call(server, page)
    assert (await keys.inner_text()).split() == ["Esc", "hang", "up"]

    await page.keyboard.press("Escape")

    await expect(keys).to_be_hidden()


async def test_a_page_without_site_data_works_all_the_same(server: ScriptedServer, page: Page) -> None:
    await page.add_init_script("""
        for (const name of ['localStorage', 'sessionStorage']) {
            Object.defineProperty(window, name, { get() { throw new DOMException('', 'SecurityError'); } });
        }
    """)
    await page.reload()
    server.refuse = web.json_response({"error": {"message": "no key"}}, status=401)
    await page.get_by_role("button", name="Call", exact=True).click()
    await page.get_by_label("Access key").fill("sk-test")

    await page.keyboard.press("Enter")

    await expect_state(page, "listening")


async def test_the_screen_is_kept_awake_again_after_the_page_was_hidden(server: ScriptedServer, page: Page) -> None:
    await page.evaluate("""
        window.locks = 0;
        navigator.wakeLock.request = async () => ({ release() {}, number: (window.locks += 1) });
        void 0;
    """)
    await call(server, page)

    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    assert await page.evaluate("locks") == 2
