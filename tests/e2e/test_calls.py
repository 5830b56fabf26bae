"""A server of its own, real WebRTC over loopback, real speech, the embedded engines: what a user gets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from media_server.audio.chunk import HEARING_HZ
from media_server.caller.client import CallClient, Received
from media_server.caller.demo import make_recordings, running_server
from tests.engines.chat_endpoint import end, serving_chat, text
from tests.engines.tiny_whisper import build_tiny_whisper
from tests.orders import send_clips
from tests.servers import server as configured_server
from tests.servers import talkative_scenario
from tests.speech import MISSING, clips

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

needs_speech = pytest.mark.skipif(not clips("barista"), reason=MISSING)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def url() -> AsyncIterator[str]:
    async with running_server() as url:
        yield url


def transcripts(received: list[Received]) -> list[str]:
    return [
        each.event["transcript"]
        for each in received
        if each.type == "conversation.item.input_audio_transcription.completed"
    ]


async def test_a_spoken_order_is_shown_while_it_is_spoken_and_answered_aloud(url: str) -> None:
    (order,) = await make_recordings(["i want a small espresso"])
    assert order.pcm is not None
    async with CallClient(url) as client:
        await client.wait_for(lambda event: event["type"] == "output_audio_buffer.stopped", 15)
        greeted = client.n_received
        await client.play(order.pcm)
        completed = await client.wait_for(
            lambda event: event["type"] == "conversation.item.input_audio_transcription.completed", 10, after=greeted
        )
        await client.wait_for(lambda event: event["type"] == "output_audio_buffer.stopped", 15, after=greeted)
        after = client.received[greeted:]
        partials = [each for each in after if each.type == "parley.partial"]
        replies = [each.event["response"] for each in after if each.type == "response.done"]
        latency = next(each.event for each in after if each.type == "parley.latency")
        sounding = [frame for frame in client.ear.frames if frame.at_s > completed.at_s and frame.audible]

    assert "espresso" in completed.event["transcript"]
    assert partials[0].at_s < completed.at_s - 0.5
    assert replies[0]["status"] == "completed"
    assert "espresso" in replies[0]["output"][0]["content"][0]["transcript"]
    assert sum(len(frame.pcm) for frame in sounding) > HEARING_HZ / 2
    assert all(latency[stage] is not None for stage in ("endpointing_ms", "asr_final_ms", "voice_to_voice_ms"))


async def test_a_typed_line_and_a_spoken_one_are_one_conversation(url: str) -> None:
    async with CallClient(url) as client:
        await client.wait_for(lambda event: event["type"] == "output_audio_buffer.stopped", 15)
        client.say_in_writing("A large latte with oat milk, please!")
        await client.wait_for(lambda event: event["type"] == "output_audio_buffer.stopped", 15, after=client.n_received)
        mark = client.n_received
        client.say_in_writing("What did I order?")
        done = await client.wait_for(lambda event: event["type"] == "response.done", 15, after=mark)

    assert "latte" in done.event["response"]["output"][0]["content"][0]["transcript"].lower()


async def test_a_barge_in_cuts_the_reply_to_what_was_heard() -> None:
    (order,) = await make_recordings(["can i get a small espresso with brown sugar"])
    assert order.pcm is not None
    async with configured_server(f'[llm]\nscenario = "{talkative_scenario()}"\n') as url, CallClient(url) as client:
        started = await client.wait_for(lambda event: event["type"] == "output_audio_buffer.started", 15)
        await client.wait_for(lambda event: event["type"] == "parley.spoken" and event["chars"] > 40, 15)
        await client.play(order.pcm)
        cleared = await client.wait_for(lambda event: event["type"] == "output_audio_buffer.cleared", 5)
        heard = await client.wait_for(lambda event: event["type"] == "parley.heard", 5)
        cut = await client.wait_for(
            lambda event: event["type"] == "response.done" and event["response"]["status"] == "cancelled", 5
        )
        item = cut.event["response"]["output"][0]
        client.send({"type": "conversation.item.retrieve", "item_id": item["id"]})
        kept = await client.wait_for(lambda event: event["type"] == "conversation.item.retrieved", 5)
        silent = [frame.audible for frame in client.ear.frames if 0.05 < frame.at_s - cleared.at_s < 0.4]
        spoken_s = cleared.at_s - started.at_s

    text = heard.event["text"]
    assert text.startswith("Let me tell you about our beans")
    assert 8 * spoken_s < len(text) < 25 * spoken_s  # characters a second of speech
    assert item["content"][0]["transcript"] == text
    assert kept.event["item"]["content"][0]["transcript"] == text
    assert not any(silent)


async def test_a_caller_who_hangs_up_leaves_a_free_place(url: str) -> None:
    for _ in range(3):
        async with CallClient(url) as client:
            await client.wait_for(lambda event: event["type"] == "session.created", 10)

    async with asyncio.timeout(15), CallClient(url) as last:
        created = await last.wait_for(lambda event: event["type"] == "session.created", 10)
    assert created.event["session"]["id"] == last.call_id


async def test_whisper_and_a_chat_endpoint_take_the_places_of_the_embedded_engines(tmp_path: Path) -> None:
    model = build_tiny_whisper(tmp_path / "whisper")
    (speech,) = await make_recordings(["turn on the lamp in my kitchen please"])
    assert speech.pcm is not None
    async with serving_chat() as endpoint:
        endpoint.lines = [text("The lamp "), text("is on. "), end("stop"), "[DONE]"]
        toml = (
            f'[asr]\nengine = "whisper"\nwhisper_model = "{model}"\nwhisper_device = "cpu"\n'
            f'[llm]\nengine = "openai"\nbase_url = "{endpoint.url}"\nmodel = "tiny"\n'
        )
        async with configured_server(toml) as url, CallClient(url) as client:
            await client.play(speech.pcm)
            done = await client.wait_for(lambda event: event["type"] == "response.done", 20)
            await client.wait_for(lambda event: event["type"] == "output_audio_buffer.stopped", 10)
            heard = transcripts(client.received)
            asked = endpoint.asked[-1]["messages"]

    assert heard[0].strip().startswith("turn on")  # how much more, depends on how loud the synthetic caller is
    assert asked[-1] == {"role": "user", "content": heard[0]}
    assert done.event["response"]["output"][0]["content"][0]["transcript"].strip() == "The lamp is on."


@needs_speech
async def test_most_of_a_spoken_order_is_understood_and_noise_is_not_answered() -> None:
    async with configured_server() as url:
        orders = await send_clips(url, clips("barista"), at_a_time=5)
        noises = await send_clips(url, clips("negatives"), at_a_time=5)
    recall = sum(heard.right for heard in orders) / sum(heard.labelled for heard in orders)
    answered = [heard.clip.path.name for heard in noises if heard.replies]

    assert recall >= 0.80
    assert len(answered) <= 2, answered
