"""Who may speak: the table at the top of the file, row by row."""

import pytest

from media_server.dialogue.endpointing import (
    Milestone,
    SpeechClear,
    SpeechEnded,
    SpeechFaded,
    SpeechLikely,
    SpeechNoticed,
)
from media_server.dialogue.turn_taking import Action, Agent, TurnTaking

NOTICED, LIKELY, CLEAR, FADED = SpeechNoticed(0), SpeechLikely(0), SpeechClear(0), SpeechFaded(0)
ENDED = SpeechEnded(0, 100, 100)


def actions(heard: list[Milestone], agent: Agent, *, interruptible: bool = True) -> list[Action]:
    turns = TurnTaking()
    turns.interruptible = interruptible
    return [action for milestone in heard for action in turns.hear(milestone, agent)]


@pytest.mark.parametrize(
    ("heard", "agent", "expected"),
    [
        ([NOTICED], Agent.SILENT, []),
        ([NOTICED, FADED], Agent.SILENT, [Action.FORGET]),
        ([NOTICED, LIKELY], Agent.SILENT, [Action.BEGIN_TURN]),
        ([NOTICED, LIKELY, CLEAR, ENDED], Agent.SILENT, [Action.BEGIN_TURN, Action.END_TURN]),
        ([NOTICED, LIKELY, FADED, ENDED], Agent.SILENT, [Action.BEGIN_TURN, Action.END_TURN]),
        ([NOTICED, LIKELY], Agent.THINKING, [Action.CUT_REPLY, Action.BEGIN_TURN]),
        ([NOTICED], Agent.AUDIBLE, [Action.DUCK]),
        ([NOTICED, FADED], Agent.AUDIBLE, [Action.DUCK, Action.UNDUCK, Action.FORGET]),
        ([NOTICED, LIKELY], Agent.AUDIBLE, [Action.DUCK, Action.RECOGNISE]),
        (
            [NOTICED, LIKELY, CLEAR],
            Agent.AUDIBLE,
            [Action.DUCK, Action.RECOGNISE, Action.CUT_REPLY, Action.BEGIN_TURN],
        ),
        (
            [NOTICED, LIKELY, FADED, ENDED],
            Agent.AUDIBLE,
            [Action.DUCK, Action.RECOGNISE, Action.UNDUCK, Action.UNDUCK, Action.FORGET],
        ),
        ([ENDED], Agent.SILENT, []),
    ],
)
def test_the_table_holds(heard: list[Milestone], agent: Agent, expected: list[Action]) -> None:
    assert actions(heard, agent) == expected


def test_a_word_cuts_a_reply_before_the_speech_is_clear() -> None:
    turns = TurnTaking()
    turns.hear(NOTICED, Agent.AUDIBLE)
    turns.hear(LIKELY, Agent.AUDIBLE)

    assert turns.word(Agent.AUDIBLE) == (Action.CUT_REPLY, Action.BEGIN_TURN)
    assert turns.word(Agent.SILENT) == ()
    assert turns.caller_talking


def test_speech_that_was_likely_becomes_a_turn_when_the_reply_ends_by_itself() -> None:
    turns = TurnTaking()
    turns.hear(NOTICED, Agent.AUDIBLE)
    before = turns.reply_ended()
    turns.hear(LIKELY, Agent.AUDIBLE)

    assert before == ()
    assert turns.reply_ended() == (Action.BEGIN_TURN,)


def test_a_reply_that_may_not_be_interrupted_is_neither_ducked_nor_cut() -> None:
    assert actions([NOTICED, LIKELY, CLEAR, ENDED], Agent.AUDIBLE, interruptible=False) == [
        Action.BEGIN_TURN,
        Action.END_TURN,
    ]
