"""What the caller can do on the page, and what it says when a call cannot be had."""

import asyncio
import itertools
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Page, Route, expect

from tests.browser.driving import (
    CHROMIUM,
    NO_MICROPHONE,
    begin_reply,
    call,
    expect_state,
    hear_heartbeat,
    received,
    speak,
)
from tests.browser.scripted_server import ScriptedServer

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one browser serves all tests
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


# getUserMedia of the test's own: it answers when the test says so, and every stream can be looked at.
ASK_THE_TEST = """
    window.asked = [];
    window.streams = [];
    navigator.mediaDevices.getUserMedia = () => new Promise((resolve) => asked.push(resolve));
    window.allow = async (index) => {
        const stream = new AudioContext().createMediaStreamDestination().stream;
        streams[index] = stream.getAudioTracks()[0];
        asked[index](stream);
        await new Promise((resolve) => setTimeout(resolve));
    };
    void 0;
"""
# A click right after the call button has changed its meaning does not count.
A_SECOND_PASSES = "const now = performance.now.bind(performance); performance.now = () => now() + 1000; void 0;"
ASKED_FOR = """() => {
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.askedFor = [];
    navigator.mediaDevices.getUserMedia = (wanted) => {
        window.askedFor.push(wanted);
        return ask(wanted);
    };
}"""
TIME_FLIES = "const now = performance.now.bind(performance); performance.now = () => now() * 20; void 0;"
# The far end cannot be reached, and ICE has given up at once; Chromium by itself takes half a minute to do that.
NO_WAY_THROUGH = """() => {
    const describe = RTCPeerConnection.prototype.setRemoteDescription;
    RTCPeerConnection.prototype.setRemoteDescription = async function (answer) {
        const sdp = answer.sdp.replace(/a=(candidate:.*|end-of-candidates)\\r\\n/g, "");
        await describe.call(this, { ...answer, sdp });
        Object.defineProperty(this, "connectionState", { value: "failed" });
        this.dispatchEvent(new Event("connectionstatechange"));
    };
}"""
NOT_READY = {"error": {"message": "models are loading", "code": "not_ready"}}
FULL = {"error": {"message": "all 50 calls are taken", "code": "server_full"}}


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


async def begin_call(server: ScriptedServer, page: Page) -> None:
    """Call, and stay where the offer waits for its answer."""
    server.answering.clear()
    await page.get_by_role("button", name="Call", exact=True).click()
    async with asyncio.timeout(10):
        await server.asked.wait()


async def test_a_typed_message_cuts_the_reply_and_asks_for_another(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "Let me tell you a story.")
    await expect_state(page, "speaking")

    await page.get_by_label("Message").fill("Stop, please")
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
    typed = server.received[2]["item"]
    assert typed == {"id": typed["id"], "type": "message", "role": "user", "content": content}
    assert len(typed["id"]) <= 32


async def test_a_line_is_confirmed_by_its_own_item_though_another_reads_the_same(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    await say(page, "yes")
    await say(page, "yes")
    await received(server, "conversation.item.create", 2)

    for event in [event for event in server.received if event["type"] == "conversation.item.create"]:
        for kind in ("conversation.item.added", "conversation.item.done"):
            server.send(kind, item={"status": "completed", **event["item"]})
    server.send("conversation.item.added", item={"id": "sys", "type": "message", "role": "system", "content": []})
    begin_reply(server, 1, "Fine.")

    await expect(page.locator(".message[data-role=agent] .words")).to_have_text("Fine.")
    await expect(page.locator(".message[data-role=caller] .words")).to_have_text(["yes", "yes"])


async def test_what_did_not_arrive_before_the_hang_up_is_given_back_and_not_said_in_a_later_call(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    await say(page, "Cancel the order")

    await page.get_by_role("button", name="Hang up").click()

    await expect(page.get_by_label("Message")).to_have_value("Cancel the order")
    await expect(page.locator(".message")).to_have_count(0)


async def test_a_line_that_the_server_refuses_is_given_back(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await say(page, "Good morning")
    await received(server, "conversation.item.create", 1)

    (event_id,) = [each["event_id"] for each in server.received if each["type"] == "conversation.item.create"]
    server.send(
        "error", error={"message": "the conversation is full", "code": "conversation_full", "event_id": event_id}
    )

    await expect(page.locator("#notices p")).to_have_text("the conversation is full")
    await expect(page.get_by_label("Message")).to_have_value("Good morning")
    await expect(page.locator(".message")).to_have_count(0)


async def test_what_was_typed_into_a_call_that_is_lost_is_said_in_the_next(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await hear_heartbeat(server)
    server.heartbeat = False
    await say(page, "Good morning")

    await expect(page.locator(".message[data-role=divider]")).to_have_count(0)
    async with asyncio.timeout(20):
        while server.calls < 2:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)
    server.heartbeat = True
    await received(server, "conversation.item.create", 2)

    texts = [each["item"]["content"][0]["text"] for each in server.received if "item" in each]
    assert texts == ["Good morning", "Good morning"]
    await expect(page.locator(".message[data-role=caller] .words")).to_have_text(["Good morning"])


async def test_a_reply_that_was_owed_when_a_call_ended_is_not_asked_for_in_the_next(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    error = {"message": "busy", "code": "conversation_already_has_active_response", "event_id": "reply_1"}
    server.send("error", error=error)
    server.send("response.created", response={"id": "resp_1"})
    await expect_state(page, "thinking")
    await page.get_by_role("button", name="Hang up").click()
    await expect_state(page, "ended")
    await asyncio.wait_for(server.hung_up.wait(), 10)

    await page.get_by_role("button", name="Call again").click()
    await expect_state(page, "listening")
    server.send("response.done", response={"id": "resp_2", "status": "completed"})
    speak(server, "user_1", "hello", "")
    await expect_state(page, "hearing")

    assert server.received == []


async def test_a_microphone_chosen_while_the_call_is_placed_is_the_one_that_listens(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    await page.get_by_role("button", name="Hang up").click()
    picker = page.get_by_role("combobox", name="Microphone")
    other = await picker.locator("option").last.get_attribute("value")
    await page.evaluate(ASKED_FOR)
    server.opened.clear()
    server.answering.clear()
    await page.get_by_role("button", name="Call again").click()
    await expect_state(page, "connecting")

    await picker.select_option(other)
    server.answering.set()
    await expect_state(page, "listening")

    await page.wait_for_function("window.askedFor.length === 2")
    asked = await page.evaluate("window.askedFor.map(({ audio }) => audio.deviceId ?? null)")
    assert asked == [None, {"exact": other}]
    await expect(picker).to_have_value(other or "")


async def test_where_the_chosen_microphone_is_unplugged_the_default_one_is_turned_on(
    server: ScriptedServer, page: Page
) -> None:
    await page.evaluate("localStorage.setItem('parley.microphone', 'unplugged')")
    await page.reload()
    await say(page, "Good morning")

    await page.get_by_role("button", name="Turn the microphone on").click()

    await expect(page.get_by_role("button", name="Mute the microphone")).to_be_visible()


async def test_typing_without_a_call_places_one_without_the_microphone(server: ScriptedServer, page: Page) -> None:
    await page.evaluate(NO_MICROPHONE % "NotFoundError")

    await say(page, "Good morning")

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
    await call(server, page)

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

    await expect(page.locator("#headline")).to_have_text("No microphone, typing only")
    await expect(page.get_by_role("combobox", name="Microphone").locator("option:checked")).to_have_text(
        "No microphone"
    )
    assert await page.get_by_role("button", name="Turn the microphone on").get_attribute("aria-pressed") is None
    assert server.calls == 1


async def test_a_microphone_chosen_in_a_typed_call_is_turned_on(server: ScriptedServer, page: Page) -> None:
    await say(page, "Good morning")
    picker = page.get_by_role("combobox", name="Microphone")
    await expect(picker).to_have_value("none")

    await picker.select_option(label="Default microphone")

    await expect(page.get_by_role("button", name="Mute the microphone")).to_be_visible()
    await expect(picker).to_have_value("")


@pytest.mark.parametrize("refusal", [FULL, NOT_READY])
async def test_a_server_that_takes_no_call_now_is_called_again_by_itself(
    server: ScriptedServer, page: Page, refusal: dict[str, Any]
) -> None:
    server.refuse = web.json_response(refusal, status=503, headers={"Retry-After": "1"})

    await page.get_by_role("button", name="Call", exact=True).click()

    await expect(page.locator("#problem")).to_have_attribute("data-code", refusal["error"]["code"])
    await expect_state(page, "listening")


async def test_a_server_that_stays_full_is_called_five_times_more_and_then_when_the_caller_likes(
    server: ScriptedServer, page: Page
) -> None:
    times_ms: list[float] = []

    async def refuse(route: Route) -> None:
        times_ms.append(await page.evaluate("performance.now()"))
        await route.fulfill(status=503, json=FULL, headers={"Retry-After": "1"})

    await page.evaluate(TIME_FLIES)
    await page.route("**/v1/realtime/calls", refuse)

    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.locator("#problem").get_by_role("button", name="Call again")).to_be_visible(timeout=20_000)
    pauses_ms = [late - early for early, late in itertools.pairwise(times_ms)]

    assert len(times_ms) == 6
    assert all(pause >= wanted for pause, wanted in zip(pauses_ms, (1e3, 2e3, 4e3, 8e3, 16e3), strict=True))
    await page.unroute("**/v1/realtime/calls")
    await page.locator("#problem").get_by_role("button", name="Call again").click()
    await expect_state(page, "listening")


async def test_a_wait_for_a_free_line_has_one_button_which_cancels_it(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response(FULL, status=503, headers={"Retry-After": "9"})
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.locator("#problem-countdown")).to_contain_text("Calling again in")
    await expect(page.locator("#problem button:visible")).to_have_count(0)

    await page.evaluate(A_SECOND_PASSES)
    await page.get_by_role("button", name="Cancel").click()

    await expect(page.get_by_role("button", name="Call", exact=True)).to_be_visible()
    assert server.calls == 0


async def test_a_server_with_keys_is_given_one(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response({"error": {"message": "no key"}}, status=401)
    await page.get_by_role("button", name="Call", exact=True).click()

    await expect(page.get_by_label("Access key")).to_be_focused()
    await page.keyboard.type("sk-test")
    async with page.expect_request("**/v1/realtime/calls") as request:
        await page.keyboard.press("Enter")

    await expect_state(page, "listening")
    assert (await request.value).headers["authorization"] == "Bearer sk-test"


async def test_a_lost_connection_is_called_again_once(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
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


async def test_a_first_connection_that_fails_is_told_at_once_and_blames_the_network(
    server: ScriptedServer, page: Page
) -> None:
    await page.evaluate(NO_WAY_THROUGH)

    await page.get_by_role("button", name="Call", exact=True).click()

    # The page's own limit would be 15 s.
    await expect(page.locator("#problem")).to_have_attribute("data-code", "no_media", timeout=5_000)


async def test_what_was_told_of_one_call_is_gone_with_the_next(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await server.hang_up()
    await expect(page.locator("#notices p")).to_have_text("The server ended the call.")
    await page.route("**/v1/realtime/calls", lambda route: route.abort())

    await page.evaluate(A_SECOND_PASSES)
    await page.get_by_role("button", name="Call again").click()

    await expect(page.locator("#problem")).to_have_attribute("data-code", "unreachable")
    await expect(page.locator("#notices p")).to_have_count(0)


async def test_another_microphone_is_taken_in_mid_call_and_remembered(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    picker = page.get_by_role("combobox", name="Microphone")
    chosen = await picker.locator("option").nth(1).get_attribute("value")

    await picker.select_option(index=1)

    await page.wait_for_function("id => localStorage.getItem('parley.microphone') === id", arg=chosen)
    await expect_state(page, "listening")
    await expect(page.locator("#notices p")).to_have_count(0)
    await page.reload()
    await call(server, page)
    await expect(picker).to_have_value(chosen or "")


async def test_a_muted_caller_is_told_so(server: ScriptedServer, page: Page) -> None:
    await call(server, page)

    await page.get_by_role("button", name="Mute the microphone").click()

    await expect(page.get_by_role("button", name="Unmute the microphone")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#headline")).to_have_text("You are muted")


async def test_of_two_microphones_picked_quickly_the_last_one_counts(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await page.evaluate(ASK_THE_TEST)
    picker = page.get_by_role("combobox", name="Microphone")
    await expect(picker.locator("option").nth(2)).to_be_attached()
    last = await picker.locator("option").nth(2).get_attribute("value")
    await picker.select_option(index=1)
    await picker.select_option(index=2)
    await page.wait_for_function("asked.length === 2")

    await page.evaluate("allow(1)")
    await page.evaluate("allow(0)")

    assert await page.evaluate("streams.map((track) => track.readyState)") == ["ended", "live"]
    await expect(picker).to_have_value(last or "")
    await page.keyboard.press("Escape")
    assert await page.evaluate("streams.map((track) => track.readyState)") == ["ended", "ended"]


async def test_a_microphone_that_fails_is_not_chosen(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await page.evaluate(NO_MICROPHONE % "NotFoundError")
    picker = page.get_by_role("combobox", name="Microphone")

    await picker.select_option(index=1)

    await expect(page.locator("#notices p")).to_have_text("No microphone found")
    await expect(picker).to_have_value("")
    assert await page.evaluate("localStorage.getItem('parley.microphone')") is None


async def test_a_muted_caller_stays_muted_with_another_microphone(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await page.get_by_role("button", name="Mute the microphone").click()
    await page.evaluate(ASK_THE_TEST)
    await page.get_by_role("combobox", name="Microphone").select_option(index=1)
    await page.wait_for_function("asked.length === 1")

    await page.evaluate("allow(0)")

    assert await page.evaluate("streams[0].enabled") is False


async def test_hanging_up_while_the_browser_asks_for_another_microphone_says_nothing(
    server: ScriptedServer, page: Page
) -> None:
    await call(server, page)
    await page.evaluate(ASK_THE_TEST)
    await page.get_by_role("combobox", name="Microphone").select_option(index=1)
    await page.wait_for_function("asked.length === 1")

    await page.get_by_role("combobox", name="Microphone").press("Escape")
    await page.evaluate("allow(0)")

    assert await page.evaluate("streams[0].readyState") == "ended"
    await expect(page.locator("#notices p")).to_have_count(0)


async def test_cancelling_while_the_browser_asks_for_the_microphone_opens_no_connection(
    server: ScriptedServer, page: Page
) -> None:
    await page.evaluate(ASK_THE_TEST)
    await page.evaluate("""
        window.peers = 0;
        window.RTCPeerConnection = class extends RTCPeerConnection { made = (window.peers += 1); };
        void 0;
    """)
    await page.get_by_role("button", name="Call", exact=True).click()
    await page.wait_for_function("asked.length === 1")

    await page.keyboard.press("Escape")
    await page.evaluate("allow(0)")

    assert await page.evaluate("streams[0].readyState") == "ended"
    assert await page.evaluate("peers") == 0


async def test_a_call_cancelled_while_it_is_offered_is_hung_up_once_it_has_an_address(
    server: ScriptedServer, page: Page
) -> None:
    await begin_call(server, page)

    await page.keyboard.press("Escape")
    await expect_state(page, "idle")
    server.answering.set()
    async with asyncio.timeout(10):
        await server.hung_up.wait()

    assert server.hangups == ["/v1/realtime/calls/rtc_1/hangup"]


async def test_hanging_up_before_the_offer_sends_none(server: ScriptedServer, page: Page) -> None:
    asking = asyncio.Event()
    await page.route("**/v1/realtime/ice_servers", lambda _: asking.set())  # never answered
    await page.get_by_role("button", name="Call", exact=True).click()
    async with asyncio.timeout(10):
        await asking.wait()

    await page.keyboard.press("Escape")

    await expect_state(page, "idle")
    assert not server.asked.is_set()


async def test_what_was_typed_waits_for_a_warming_server_and_leaves_the_microphone_alone(
    server: ScriptedServer, page: Page
) -> None:
    server.refuse = web.json_response(NOT_READY, status=503, headers={"Retry-After": "1"})
    await say(page, "Good morning")
    await expect(page.locator("#problem")).to_have_attribute("data-code", "not_ready")

    await expect_state(page, "thinking")

    await expect(page.get_by_role("button", name="Turn the microphone on")).to_be_visible()
    await expect(page.locator(".words")).to_have_text(["Good morning"])
    await expect(page.get_by_label("Message")).to_have_value("")


async def test_calling_again_after_a_typed_call_leaves_the_microphone_alone(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response({"error": {"message": "no"}}, status=500)
    await say(page, "Good morning")
    await expect(page.get_by_label("Message")).to_have_value("Good morning")

    await page.get_by_role("button", name="Call again").click()

    await expect(page.get_by_role("button", name="Turn the microphone on")).to_be_visible()
    assert server.received == []


async def test_cancelling_gives_back_what_was_typed_beside_the_draft(server: ScriptedServer, page: Page) -> None:
    server.answering.clear()
    await say(page, "Good morning.")
    await page.get_by_label("Message").fill("One tea, please.")
    await page.get_by_label("Message").blur()

    await page.keyboard.press("Escape")

    await expect(page.get_by_label("Message")).to_have_value("Good morning. One tea, please.")


async def test_escape_clears_a_draft_before_it_hangs_up(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    await page.get_by_label("Message").fill("One tea")

    await page.keyboard.press("Escape")

    await expect(page.get_by_label("Message")).to_have_value("")
    await expect_state(page, "listening")
    await page.keyboard.press("Escape")
    await expect_state(page, "ended")


async def test_a_double_click_calls_once(server: ScriptedServer, page: Page) -> None:
    await page.get_by_role("button", name="Call", exact=True).dblclick()

    await expect_state(page, "listening")


async def test_space_in_what_was_said_places_no_call(server: ScriptedServer, page: Page) -> None:
    await call(server, page)
    begin_reply(server, 1, "Hello.")
    await expect_state(page, "speaking")
    await page.keyboard.press("Escape")

    await page.locator("#main").press("Space")
    await page.locator("#main").blur()
    await page.keyboard.press("Space")

    await expect_state(page, "ended")


async def test_letters_and_shift_do_nothing_outside_a_field(server: ScriptedServer, page: Page) -> None:
    await page.keyboard.type("/a")
    await page.keyboard.press("Shift+Space")

    await expect_state(page, "idle")
    await expect(page.locator("body")).to_be_focused()
    await expect(page.get_by_label("Message")).to_have_value("")


async def test_a_dismissed_problem_leaves_the_focus_on_the_call_button(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response({"error": {"message": "no"}}, status=500)
    await page.get_by_role("button", name="Call", exact=True).click()

    await page.get_by_role("button", name="Dismiss").press("Enter")

    await expect(page.locator("#call")).to_be_focused()
    await expect_state(page, "idle")


async def test_a_countdown_is_no_alert(server: ScriptedServer, page: Page) -> None:
    server.refuse = web.json_response(NOT_READY, status=503, headers={"Retry-After": "9"})

    await page.get_by_role("button", name="Call", exact=True).click()

    await expect(page.get_by_role("alert")).to_have_text("The server is warming up Its engines are not ready yet.")
    await expect(page.locator("#problem-countdown")).to_contain_text("Calling again in")
