"""Who may speak. Pure: what was heard and what the agent is doing go in, what to do comes out.

    caller    heard          agent silent      agent thinking           agent audible
    quiet     noticed        maybe             maybe                    Duck; maybe
    maybe     likely         BeginTurn         CutReply, BeginTurn      Recognise
    maybe     clear, word    BeginTurn         CutReply, BeginTurn      CutReply, BeginTurn
    maybe     faded          Forget            Forget                   Unduck, Forget; if it was likely, Unduck alone
    maybe     ended          Forget            Forget                   Unduck, Forget
    maybe     reply ended    BeginTurn, if it was likely already
    talking   ended          EndTurn           EndTurn                  EndTurn

Where a reply may not be interrupted, the caller's turn begins beside it, and it is neither ducked nor cut.
"""

from enum import Enum, auto
from typing import TypeAlias

from media_server.dialogue.endpointing import (
    Milestone,
    SpeechClear,
    SpeechEnded,
    SpeechFaded,
    SpeechLikely,
    SpeechNoticed,
)


class Agent(Enum):
    """What the agent is doing."""

    SILENT = auto()
    THINKING = auto()
    AUDIBLE = auto()


class Action(Enum):
    """What the session is to do, in this order if several."""

    DUCK = auto()
    """Play the reply more quietly."""
    UNDUCK = auto()
    """Bring it back to full volume."""
    CUT_REPLY = auto()
    """Silence the reply, remember what was heard, and cancel the work."""
    RECOGNISE = auto()
    """Begin to recognise the utterance, without telling anyone yet."""
    BEGIN_TURN = auto()
    """The caller has the floor: tell the client; begin to recognise, if not done yet."""
    END_TURN = auto()
    """The caller has finished: tell the client; wait for the final transcript."""
    FORGET = auto()
    """It was nothing: drop the utterance."""


class _Caller(Enum):
    QUIET = auto()
    MAYBE = auto()
    TALKING = auto()


Actions: TypeAlias = tuple[Action, ...]


class TurnTaking:
    """The state of the caller's side of the floor."""

    def __init__(self) -> None:
        self.interruptible = True
        self._caller = _Caller.QUIET
        self._likely = False

    @property
    def caller_talking(self) -> bool:
        """Return whether the caller has the floor."""
        return self._caller is _Caller.TALKING

    def hear(self, milestone: Milestone, agent: Agent) -> Actions:
        """Take a milestone of the caller's speech."""
        match milestone:
            case SpeechNoticed():
                return self._noticed(agent)
            case SpeechLikely():
                return self._likely_speech(agent)
            case SpeechClear():
                return self._begin(agent)
            case SpeechFaded():
                return self._faded(agent)
            case SpeechEnded():
                return self._ended(agent)

    def word(self, agent: Agent) -> Actions:
        """Take the recogniser's first word of an utterance: it is speech, however short."""
        return self._begin(agent)

    def reply_ended(self) -> Actions:
        """Take that the agent has fallen silent by itself: what the caller was saying becomes a turn."""
        if self._caller is _Caller.MAYBE and self._likely:
            return self._begin(Agent.SILENT)
        return ()

    def reset(self) -> None:
        """Forget an utterance under way."""
        self._caller = _Caller.QUIET
        self._likely = False

    def _noticed(self, agent: Agent) -> Actions:
        if self._caller is not _Caller.QUIET:
            return ()
        self._caller = _Caller.MAYBE
        self._likely = False
        return (Action.DUCK,) if agent is Agent.AUDIBLE and self.interruptible else ()

    def _likely_speech(self, agent: Agent) -> Actions:
        if self._caller is not _Caller.MAYBE:
            return ()
        self._likely = True
        if agent is Agent.AUDIBLE and self.interruptible:
            return (Action.RECOGNISE,)
        return self._begin(agent)

    def _begin(self, agent: Agent) -> Actions:
        if self._caller is not _Caller.MAYBE:
            return ()
        self._caller = _Caller.TALKING
        if agent is not Agent.SILENT and self.interruptible:
            return (Action.CUT_REPLY, Action.BEGIN_TURN)
        return (Action.BEGIN_TURN,)

    def _faded(self, agent: Agent) -> Actions:
        if self._caller is not _Caller.MAYBE:
            return ()
        # Recognition goes on until the utterance ends: a word may still come out of it.
        if self._likely:
            return (Action.UNDUCK,) if agent is Agent.AUDIBLE else ()
        return self._forget(agent)

    def _ended(self, agent: Agent) -> Actions:
        if self._caller is _Caller.TALKING:
            self.reset()
            return (Action.END_TURN,)
        if self._caller is _Caller.MAYBE:
            return self._forget(agent)
        return ()

    def _forget(self, agent: Agent) -> Actions:
        self.reset()
        return (Action.UNDUCK, Action.FORGET) if agent is Agent.AUDIBLE else (Action.FORGET,)
