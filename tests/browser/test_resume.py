"""The page brings a call back whose network was taken away: Chromium and our own server, scripted engines behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, Route, expect

from media_server.conversation import SpokenMessage
from media_server.engines.scripted import ScriptedLlm
from media_server.session.session import Session
from media_server.transport.webrtc.peer import WebRtcPeer
from signaling.app import build_app, build_house
from signaling.house import House
from tests.browser.driving import CHROMIUM, expect_state
from tests.signaling.scripted_house import ScriptedEngines, make_config

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

LIMIT_MS = 30_000
LONG = "One, two, three. " + "And so it goes on and on and on, for a very long time. " * 10
REPLIES = [["The first answer."], ["The second answer."]]

BRIEFLY = {"webrtc.gone_after_s": 2, "call.resume_s": 2}
"""A call is kept for 4 s; the page notices within 3."""

DEAF_SECOND_CHANNEL = """() => {
    const create = RTCPeerConnection.prototype.createDataChannel;
    const beat = { data: '{"type": "parley.levels"}' };
    let late = null;
    window.channels = [];
    RTCPeerConnection.prototype.restartIce = () => { throw new Error("not on this network"); };
    RTCPeerConnection.prototype.createDataChannel = function (...settings) {
        const channel = create.apply(this, settings);
        window.channels.push(channel);
        if (window.channels.length === 2) {
            Object.defineProperty(channel, "onmessage", { set() {} });
            late = setInterval(() => window.channels[0].onmessage(beat), 50);
        } else clearInterval(late);
        return channel;
    };
}"""
"""No connection can be restarted; on the second nothing is heard, while heartbeats of the first still come."""


class Scene:
    """A server, its page, and the one call between them."""

    def __init__(self, house: House, page: Page) -> None:
        self.house = house
        self.page = page
        self.call_id = ""

    @property
    def session(self) -> Session:
        """Return the call."""
        session = self.house.manager.find(self.call_id)
        assert session is not None
        return session

    @property
    def peer(self) -> WebRtcPeer:
        """Return what carries the call now."""
        peer = self.session.media
        assert isinstance(peer, WebRtcPeer)
        return peer

    async def call(self) -> None:
        """Call from the page."""
        async with self.page.expect_response("**/v1/realtime/calls") as response:
            await self.page.get_by_role("button", name="Call", exact=True).click()
        self.call_id = (await (await response.value).header_value("location") or "").rpartition("/")[2]
        await expect_state(self.page, "listening")

    async def say(self, text: str, answer: str) -> None:
        """Type a line and see it answered."""
        await self.page.get_by_placeholder("Type a message").fill(text)
        await self.page.keyboard.press("Enter")
        await expect(self.page.locator(".message[data-role=agent] .words", has_text=answer)).to_have_count(1)
        await expect_state(self.page, "listening")

    def roles(self) -> Any:
        """Return where the page shows its messages."""
        return self.page.locator(".message")


@pytest_asyncio.fixture(loop_scope="module")
async def scene(browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    engines = ScriptedEngines()
    engines.llm = ScriptedLlm(REPLIES)
    async with serving(engines, getattr(request, "param", {})) as (house, url):
        page = await browser.new_page()
        page.set_default_timeout(LIMIT_MS)
        mistakes: list[str] = []
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        await page.goto(url)
        yield Scene(house, page)
        await page.close()
        assert mistakes == []


@asynccontextmanager
async def serving(engines: ScriptedEngines, flags: Mapping[str, str | int]) -> AsyncIterator[tuple[House, str]]:
    house = build_house(make_config(flags), engines)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(house.manager.run()), tasks.create_task(house.pacing.run())]
        async with TestServer(build_app(house), host="127.0.0.1") as server:
            yield house, str(server.make_url("/"))
        for task in running:
            task.cancel()


def pull_the_plug(peer: WebRtcPeer) -> Callable[[], None]:
    """Cut a connection's wires without a word; return what mends them."""
    protocols = list(peer._transceiver.receiver.transport.transport._connection._protocols)
    kept = [(protocol, protocol.transport, protocol.datagram_received) for protocol in protocols]

    class Nowhere:
        def sendto(self, *_: object) -> None:
            """Lose it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(kept[0][1], name)

    for protocol in protocols:
        protocol.transport = Nowhere()  # type: ignore[assignment]
        protocol.datagram_received = lambda *_: None  # type: ignore[method-assign]

    def mend() -> None:
        for protocol, transport, datagram_received in kept:
            protocol.transport = transport
            protocol.datagram_received = datagram_received  # type: ignore[method-assign]

    return mend


async def test_a_call_whose_connection_died_comes_back_over_another_with_its_conversation(scene: Scene) -> None:
    await scene.call()
    await scene.say("first", "The first answer.")

    mend = pull_the_plug(scene.peer)
    await expect_state(scene.page, "reconnecting")
    await expect(scene.page.locator("body")).to_have_attribute("data-state", "listening", timeout=LIMIT_MS)
    mend()
    await scene.say("second", "The second answer.")

    await expect(scene.roles()).to_have_count(4)
    assert scene.house.manager.calls == 1
    assert scene.house.metrics.snapshot()["calls_resumed_total"] == 1


async def test_what_was_typed_into_a_dead_connection_is_said_over_the_next(scene: Scene) -> None:
    await scene.call()
    pull_the_plug(scene.peer)

    await scene.page.get_by_placeholder("Type a message").fill("first")
    await scene.page.keyboard.press("Enter")

    await expect_state(scene.page, "reconnecting")
    answer = scene.page.locator(".message[data-role=agent] .words", has_text="The first answer.")
    await expect(answer).to_have_count(1, timeout=LIMIT_MS)
    await expect(scene.roles()).to_have_count(2)


async def test_a_line_typed_into_a_dead_connection_is_said_over_the_next_though_it_was_said_before(
    scene: Scene,
) -> None:
    await scene.call()
    await scene.say("yes", "The first answer.")
    pull_the_plug(scene.peer)

    await scene.page.get_by_placeholder("Type a message").fill("yes")
    await scene.page.keyboard.press("Enter")

    answer = scene.page.locator(".message[data-role=agent] .words", has_text="The second answer.")
    await expect(answer).to_have_count(1, timeout=LIMIT_MS)
    await expect(scene.page.locator(".message[data-role=caller] .words")).to_have_text(["yes", "yes"])


async def test_a_reply_under_way_is_shown_as_far_as_the_server_knows_it_was_heard(scene: Scene) -> None:
    scene.house.engines.llm = ScriptedLlm([[LONG]])  # type: ignore[misc]
    await scene.call()
    await scene.page.get_by_placeholder("Type a message").fill("go on")
    await scene.page.keyboard.press("Enter")
    reply = scene.page.locator(".message[data-role=agent]")
    await expect(reply.locator(".spoken")).to_contain_text("two")

    pull_the_plug(scene.peer)
    await expect_state(scene.page, "reconnecting")
    await expect(scene.page.locator("body")).to_have_attribute("data-state", "listening", timeout=LIMIT_MS)
    (heard,) = [item.text for item in scene.session.conversation if isinstance(item, SpokenMessage)][1:]

    await expect(reply).to_have_attribute("data-status", "interrupted")
    await expect(reply.locator(".spoken")).to_have_text(heard)
    assert LONG.startswith(heard)
    assert 0 < len(heard) < len(LONG)


async def test_a_network_that_comes_back_gets_the_call_back_on_the_same_connection(scene: Scene) -> None:
    await scene.call()
    await scene.say("first", "The first answer.")
    peer = scene.peer
    mend = pull_the_plug(peer)
    restart = peer.restart

    async def restart_on_a_mended_network(offer_sdp: str) -> str | None:
        mend()
        return await restart(offer_sdp)

    peer.restart = restart_on_a_mended_network  # type: ignore[method-assign]
    async with scene.page.expect_response("**/resume"):
        pass
    await expect_state(scene.page, "listening")
    await scene.say("second", "The second answer.")

    assert scene.peer is peer
    assert scene.house.metrics.snapshot()["calls_resumed_total"] == 0


async def test_where_the_browser_tells_of_a_network_the_call_changes_to_it_at_once(scene: Scene) -> None:
    await scene.call()
    peer = scene.peer

    async with scene.page.expect_response("**/resume") as response:
        await scene.page.evaluate("void dispatchEvent(new Event('online'))")
    await expect_state(scene.page, "listening")
    await scene.say("first", "The first answer.")

    assert (await response.value).status == 200
    assert scene.peer is peer


async def test_a_call_that_comes_back_asks_for_no_ice_servers_while_it_has_some_that_hold(scene: Scene) -> None:
    asked: list[str] = []
    scene.page.on(
        "request", lambda request: asked.append(request.url.rpartition("/")[2]) if "/v1/" in request.url else None
    )
    await scene.page.evaluate("void (RTCPeerConnection.prototype.restartIce = () => { throw new Error(); })")
    await scene.call()

    async with scene.page.expect_response("**/resume"):
        pull_the_plug(scene.peer)
    await expect_state(scene.page, "listening")

    assert asked == ["ice_servers", "calls", "resume"]
    assert scene.house.metrics.snapshot()["calls_resumed_total"] == 1


async def test_a_heartbeat_over_the_connection_before_does_not_speak_for_the_next(scene: Scene) -> None:
    await scene.page.evaluate(DEAF_SECOND_CHANNEL)
    await scene.call()

    pull_the_plug(scene.peer)
    await expect_state(scene.page, "reconnecting")
    await expect(scene.page.locator("body")).to_have_attribute("data-state", "listening", timeout=LIMIT_MS)

    assert await scene.page.evaluate("window.channels.length") == 3


async def test_a_call_that_the_server_has_ended_is_not_brought_back(scene: Scene) -> None:
    await scene.call()

    await scene.house.manager.hang_up(scene.call_id)

    await expect_state(scene.page, "ended")
    await expect(scene.page.locator("#notices p")).to_have_text("The server ended the call.")
    assert scene.house.manager.calls == 0


@pytest.mark.parametrize("scene", [BRIEFLY], indirect=True)
async def test_a_call_that_cannot_be_brought_back_while_the_server_waits_says_so_and_offers_another(
    scene: Scene,
) -> None:
    tries: list[str] = []

    async def refuse(route: Route) -> None:
        tries.append(route.request.url.rpartition("/")[2])
        await route.abort()

    await scene.call()
    await scene.say("first", "The first answer.")
    await scene.page.route("**/v1/realtime/calls**", refuse)
    await scene.page.route("**/v1/realtime/calls/**", refuse)

    pull_the_plug(scene.peer)

    await expect(scene.page.locator("#problem")).to_have_attribute("data-code", "lost", timeout=LIMIT_MS)
    await expect(scene.page.get_by_role("button", name="Call again")).to_have_count(1)
    await expect(scene.roles()).not_to_have_count(0)
    assert tries == ["resume", "resume", "hangup", "calls"]  # another connection at once, but none 2 s later


async def test_a_call_on_its_way_back_can_be_muted_and_shows_its_length(scene: Scene) -> None:
    await scene.page.route("**/resume", lambda _: None)  # no answer
    await scene.call()

    await scene.page.evaluate("void dispatchEvent(new Event('online'))")
    await expect_state(scene.page, "reconnecting")
    await scene.page.get_by_role("button", name="Mute the microphone").click()

    await expect(scene.page.get_by_role("button", name="Unmute the microphone")).to_be_visible()
    await expect(scene.page.locator("#timer")).to_be_visible()
    await expect(scene.page.get_by_role("button", name="Hang up")).to_be_visible()
