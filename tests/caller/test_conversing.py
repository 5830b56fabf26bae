"""The caller waits until the agent has had its say."""

from typing import Any

import numpy as np
import pytest

from media_server.caller.conversing import Attention, trailing_samples

STARTED = {"type": "input_audio_buffer.speech_started"}
STOPPED = {"type": "input_audio_buffer.speech_stopped"}
SPOKEN_OUTPUT = [{"id": "item_1", "content": [{"type": "output_audio", "transcript": "Sure."}]}]
TYPED_OUTPUT = [{"id": "item_1", "content": [{"type": "output_text", "text": "Sure."}]}]


def transcribed(text: str) -> dict[str, Any]:
    return {"type": "conversation.item.input_audio_transcription.completed", "transcript": text}


def created(reply_id: str) -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": reply_id}}


def done(reply_id: str, status: str = "completed", output: Any = SPOKEN_OUTPUT) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": reply_id, "status": status, "output": output}}


def playout(what: str, reply_id: str) -> dict[str, Any]:
    return {"type": f"output_audio_buffer.{what}", "response_id": reply_id}


def settled_after(*events: dict[str, Any]) -> list[bool]:
    attention = Attention()
    states = []
    for event in events:
        attention.tell(event)
        states.append(attention.settled)
    return states


def test_a_spoken_reply_is_over_when_its_last_sound_went_out() -> None:
    states = settled_after(
        STARTED,
        STOPPED,
        transcribed("hi"),
        created("r1"),
        playout("started", "r1"),
        done("r1"),
        playout("stopped", "r1"),
    )

    assert states == [False, False, False, False, False, False, True]


def test_a_reply_that_is_done_before_its_first_sound_is_waited_for() -> None:
    states = settled_after(created("r1"), done("r1"), playout("started", "r1"), playout("stopped", "r1"))

    assert states == [False, False, False, True]


def test_a_reply_whose_sound_went_out_before_it_was_done_is_over_then() -> None:
    states = settled_after(created("r1"), playout("started", "r1"), playout("stopped", "r1"), done("r1"))

    assert states == [False, False, False, True]


def test_a_typed_reply_is_over_when_it_is_done() -> None:
    assert settled_after(created("r1"), done("r1", output=TYPED_OUTPUT)) == [False, True]


def test_a_reply_that_was_cut_by_the_callers_next_words_is_followed_by_another() -> None:
    states = settled_after(
        created("r1"),
        playout("started", "r1"),
        STARTED,
        playout("cleared", "r1"),
        done("r1", "cancelled"),
        STOPPED,
        transcribed("and a muffin"),
        created("r2"),
        playout("started", "r2"),
        done("r2"),
        playout("stopped", "r2"),
    )

    assert states == [False] * 10 + [True]


def test_a_reply_that_was_cut_is_no_whole_reply() -> None:
    states = settled_after(created("r1"), playout("started", "r1"), playout("cleared", "r1"), done("r1", "cancelled"))

    assert states == [False, False, False, False]


def test_a_noise_without_a_word_owes_no_reply() -> None:
    states = settled_after(created("r1"), done("r1", output=TYPED_OUTPUT), STARTED, STOPPED, transcribed(""))

    assert states == [False, True, False, False, True]


def test_a_reply_that_failed_has_been_had_but_is_no_answer() -> None:
    attention = Attention()
    for event in (created("r1"), done("r1", "failed", [])):
        attention.tell(event)

    assert (attention.settled, attention.answered) == (True, False)


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_turn_with_one_reply_that_did_not_fail_is_answered(status: str) -> None:
    attention = Attention()
    for event in (done("r1", "failed", []), done("r2", status, [])):
        attention.tell(event)

    assert (attention.settled, attention.answered) == (True, True)


@pytest.mark.parametrize(("n_silent", "expected"), [(0, 0), (4800, 4800), (4900, 4800)])
def test_the_silence_at_the_end_of_a_recording_is_measured_in_frames(n_silent: int, expected: int) -> None:
    pcm = np.concatenate([np.full(9600, 3000), np.zeros(n_silent)]).astype(np.int16)

    assert abs(trailing_samples(pcm) - expected) <= 480


def test_the_room_behind_the_voice_is_silence_too() -> None:
    pcm = np.concatenate([np.full(9600, 8000), np.full(4800, 200)]).astype(np.int16)

    assert trailing_samples(pcm) == 4800


def test_a_silent_recording_has_no_end_of_speech() -> None:
    assert trailing_samples(np.zeros(4800, dtype=np.int16)) == 0
