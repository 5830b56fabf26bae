"""The milestones of an utterance, window by window. A window is 32 ms: 512 samples at 16 kHz."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from media_server.dialogue.endpointing import (
    Endpointing,
    EndpointingRules,
    Milestone,
    SpeechClear,
    SpeechEnded,
    SpeechFaded,
    SpeechLikely,
    SpeechNoticed,
)

RULES = EndpointingRules(
    threshold=0.5,
    release_threshold=0.35,
    notice_ms=32,
    onset_ms=96,
    clear_ms=128,
    release_ms=256,
    silence_ms=512,
    max_utterance_ms=60_000,
)


def milestones(probabilities: list[float], rules: EndpointingRules = RULES) -> list[tuple[int, Milestone]]:
    """Return each milestone with the number of the window that passed it, from 0."""
    endpointing = Endpointing(rules)
    return [
        (n, milestone)
        for n, probability in enumerate(probabilities)
        for milestone in endpointing.window(probability, n * 512, (n + 1) * 512)
    ]


def test_speech_is_noticed_then_likely_then_clear_then_ended() -> None:
    assert milestones([0.0] * 2 + [0.9] * 5 + [0.0] * 20) == [
        (2, SpeechNoticed(1024)),
        (4, SpeechLikely(1024)),
        (5, SpeechClear(1024)),
        (22, SpeechEnded(1024, 3584, 160)),
    ]


def test_a_single_window_fades() -> None:
    assert milestones([0.9] + [0.0] * 30) == [(0, SpeechNoticed(0)), (8, SpeechFaded(0))]


def test_likely_speech_that_was_never_clear_fades_and_ends() -> None:
    assert milestones([0.9] * 3 + [0.0] * 30) == [
        (0, SpeechNoticed(0)),
        (2, SpeechLikely(0)),
        (10, SpeechFaded(0)),
        (18, SpeechEnded(0, 1536, 96)),
    ]


def test_a_short_gap_does_not_take_back_what_was_counted() -> None:
    assert milestones([0.9, 0.1, 0.9, 0.1, 0.9, 0.9]) == [
        (0, SpeechNoticed(0)),
        (4, SpeechLikely(0)),
        (5, SpeechClear(0)),
    ]


def test_within_speech_the_lower_threshold_holds() -> None:
    weak = milestones([0.9] * 4 + [0.4] * 40)
    never = milestones([0.4] * 40)

    assert [type(milestone) for _, milestone in weak] == [SpeechNoticed, SpeechLikely, SpeechClear]
    assert never == []


def test_a_pause_shorter_than_the_silence_does_not_end_a_turn() -> None:
    ended = [milestone for _, milestone in milestones([0.9] * 5 + [0.0] * 15 + [0.9] * 5 + [0.0] * 16)]

    assert ended[-1] == SpeechEnded(0, 25 * 512, 320)
    assert len(ended) == 4


def test_an_utterance_is_ended_by_force_at_its_longest() -> None:
    rules = EndpointingRules(
        threshold=0.5,
        release_threshold=0.35,
        notice_ms=32,
        onset_ms=96,
        clear_ms=128,
        release_ms=256,
        silence_ms=512,
        max_utterance_ms=320,
    )

    passed = milestones([0.9] * 20, rules)

    assert [n for n, milestone in passed if isinstance(milestone, SpeechEnded)] == [9, 19]


def test_an_end_by_force_without_speech_is_nothing() -> None:
    assert Endpointing(RULES).end() == []


def test_a_click_fades_though_a_shorter_silence_ends_turns() -> None:
    rules = replace(RULES, silence_ms=192)

    assert milestones([0.9] + [0.0] * 20, rules) == [(0, SpeechNoticed(0)), (8, SpeechFaded(0))]


@given(st.lists(st.floats(0, 1), max_size=300), st.sampled_from([192, 512]))
def test_every_utterance_passes_its_milestones_in_order(probabilities: list[float], silence_ms: int) -> None:
    order = [SpeechNoticed, SpeechLikely, SpeechClear]
    reached = 0
    for _, milestone in milestones(probabilities, replace(RULES, silence_ms=silence_ms)):
        if isinstance(milestone, SpeechEnded):
            assert reached >= 2
            assert milestone.start_pts < milestone.end_pts
            reached = 0
        elif isinstance(milestone, SpeechFaded):
            assert reached in {1, 2}
            reached = 0 if reached == 1 else reached
        else:
            assert type(milestone) is order[reached]
            reached += 1
