"""Events of the wire become lines that people read."""

from typing import Any

from media_server.caller.subtitles import Line, Subtitles


def shown(*events: dict[str, Any]) -> list[Line]:
    subtitles = Subtitles()
    return [line for event in events for line in subtitles.lines(event)]


def partial(stable: str, tail: str) -> dict[str, Any]:
    return {"type": "parley.partial", "item_id": "item_1", "stable": stable, "tail": tail}


def delta(text: str) -> dict[str, Any]:
    return {
        "type": "response.output_audio_transcript.delta",
        "item_id": "item_2",
        "response_id": "resp_1",
        "delta": text,
    }


def said(text: str) -> dict[str, Any]:
    return {"type": "response.output_audio_transcript.done", "item_id": "item_2", "transcript": text}


def heard(text: str) -> dict[str, Any]:
    return {"type": "parley.heard", "item_id": "item_2", "text": text}


def test_what_the_caller_says_grows_on_a_live_line_and_ends_on_one_of_its_own() -> None:
    lines = shown(
        partial("", "a lot"),
        partial("a", "latte"),
        partial("a", "latte"),
        {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": "item_1",
            "transcript": " a latte ",
        },
    )

    assert lines == [
        Line("you (partial): a lot", live=True),
        Line("you (partial): a latte", live=True),
        Line("you:   a latte"),
    ]


def test_a_server_that_sends_only_deltas_is_shown_as_it_goes() -> None:
    kind = "conversation.item.input_audio_transcription.delta"

    lines = shown(
        {"type": kind, "item_id": "item_1", "delta": "a "}, {"type": kind, "item_id": "item_1", "delta": "latte"}
    )

    assert lines == [Line("you (partial): a ", live=True), Line("you (partial): a latte", live=True)]


def test_stable_words_alone_do_not_hide_the_guess_that_was_shown() -> None:
    kind = "conversation.item.input_audio_transcription.delta"

    lines = shown(partial("", "a large latte"), {"type": kind, "item_id": "item_1", "delta": "a "})

    assert lines == [Line("you (partial): a large latte", live=True)]


def test_what_the_caller_typed_is_shown_once() -> None:
    item = {"id": "item_1", "role": "user", "content": [{"type": "input_text", "text": "a latte"}]}

    lines = shown({"type": "conversation.item.added", "item": item}, {"type": "conversation.item.done", "item": item})

    assert lines == [Line("you:   a latte")]


def test_an_item_that_was_spoken_is_not_shown_before_it_is_recognised() -> None:
    spoken = {"role": "user", "content": [{"type": "input_audio", "transcript": None}]}
    answered = {"role": "assistant", "content": [{"type": "output_audio", "transcript": "Sure."}]}

    assert shown(*({"type": "conversation.item.added", "item": item} for item in (spoken, answered))) == []


def test_a_turn_without_a_word_says_so() -> None:
    lines = shown(
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1", "transcript": ""}
    )

    assert lines == [Line("you:   (no words)")]


def test_a_reply_is_shown_once_it_is_written() -> None:
    assert shown(delta("Sure, "), delta("a latte."), said("Sure, a latte.")) == [Line("agent: Sure, a latte.")]


def test_a_typed_reply_is_shown() -> None:
    lines = shown({"type": "response.output_text.done", "item_id": "item_2", "text": "Sure."})

    assert lines == [Line("agent: Sure.")]


def test_a_cut_while_the_agent_still_wrote_shows_only_what_was_heard() -> None:
    lines = shown(delta("Sure, a latte with"), heard("Sure, a"), said("Sure, a"))

    assert lines == [Line("agent: Sure, a -- (cut)")]


def test_a_cut_after_all_was_written_marks_how_far_it_was_heard() -> None:
    lines = shown(delta("Sure, a latte."), said("Sure, a latte."), heard("Sure,"))

    assert lines == [Line("agent: Sure, a latte."), Line("       cut; heard: Sure, --")]


def test_a_cut_after_the_reply_was_done_is_still_told() -> None:
    done = {"type": "response.done", "response": {"id": "r", "status": "completed", "output": [{"id": "item_2"}]}}

    lines = shown(delta("Sure, a latte."), said("Sure, a latte."), done, heard(""))

    assert lines == [Line("agent: Sure, a latte."), Line("       cut; heard: --")]


def test_a_cut_before_the_first_word_is_a_dash() -> None:
    assert shown(delta("Sure"), heard("")) == [Line("agent: -- (cut)")]


def test_latencies_come_in_the_order_of_the_stages_without_those_that_were_not() -> None:
    lines = shown(
        {
            "type": "parley.latency",
            "response_id": "resp_1",
            "voice_to_voice_ms": 581.6,
            "endpointing_ms": 512.4,
            "asr_final_ms": 11.0,
            "llm_first_token_ms": None,
        }
    )

    assert lines == [Line("       end of turn 512, transcript 11, voice to voice 582 ms")]


def test_a_latency_without_a_stage_is_not_shown() -> None:
    assert shown({"type": "parley.latency", "response_id": "resp_1", "voice_to_voice_ms": None}) == []


def test_a_barge_in_is_measured_step_by_step() -> None:
    lines = shown({"type": "parley.barge_in", "duck_ms": 40.2, "cut_ms": 131.0, "silence_ms": 144.9, "ear_ms": None})

    assert lines == [Line("       barge-in: quieter after 40, cut after 131, silent after 145 ms")]


def test_a_failed_reply_says_why() -> None:
    response = {
        "id": "resp_1",
        "status": "failed",
        "status_details": {"type": "failed", "error": {"code": "engine_failed", "message": "Sorry."}},
        "output": [],
    }

    assert shown({"type": "response.done", "response": response}) == [Line("error: the reply failed: Sorry.")]


def test_a_cancelled_reply_that_was_not_heard_is_shown_as_far_as_it_was_written() -> None:
    response = {"id": "resp_1", "status": "cancelled", "output": [{"id": "item_2"}]}

    lines = shown(delta("Sure"), {"type": "response.done", "response": response})

    assert lines == [Line("agent: Sure -- (cancelled)")]


def test_an_error_is_shown() -> None:
    assert shown({"type": "error", "error": {"message": "no such item"}}) == [Line("error: no such item")]


def test_a_tool_call_is_shown_with_its_arguments() -> None:
    lines = shown({"type": "response.function_call_arguments.done", "name": "order", "arguments": '{"size":"large"}'})

    assert lines == [Line('agent: calls order({"size":"large"})')]


def test_levels_and_unknown_events_say_nothing() -> None:
    assert shown({"type": "parley.levels", "caller_dbfs": -20}, {"type": "something.new"}, {}) == []
