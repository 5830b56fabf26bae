"""What a rule-based agent answers: it follows from the conversation's items and from nothing else.

The caller's messages are replayed from the first, so there is nothing to remember between replies and nothing that a
cut reply could leave behind. A question counts as asked if its first words were heard (`SpokenMessage.text`).

    stage        asks                           goes on when
    -----        ----                           ------------
    open         what is missing and required   every line is complete
    complete     milk or sugar (once); more     the caller says that this is all
    finished     is that right?                 yes: confirmed; no: what to change
    confirmed    nothing                        the order is changed: finished again
"""

from dataclasses import dataclass, field

from media_server.conversation import Item, SpokenMessage
from media_server.engines.scenario import Scenario
from media_server.engines.scenario_order import Change, Order
from media_server.engines.scenario_understanding import Understood


@dataclass(slots=True)
class Dialogue:
    """The state of one conversation while it is replayed: `take` its items in order, then ask for the `reply`."""

    scenario: Scenario
    order: Order = field(init=False)
    turns: int = 0
    confused: int = 0
    finished: bool = False
    confirmed: bool = False
    offered: bool = False
    asked: str | None = None
    last_said: str = ""
    unheard: str | None = None
    """Our reply to the caller's last words, while the caller has heard nothing of ours since."""

    def __post_init__(self) -> None:
        self.order = Order(self.scenario.vocabulary)

    def take(self, item: Item) -> None:
        """Take the next item: one or two milliseconds for the longest."""
        if not isinstance(item, SpokenMessage) or item.role == "system":
            return
        if item.role == "user":
            self.unheard = self.hear(item.text)
        elif item.text.strip():
            self.say(item)
            self.unheard = None

    def reply(self) -> str:
        """Return what to say now: one or two short sentences, never empty."""
        if not self.turns:
            return self.begin()
        return self.go_on() if self.unheard is None else self.unheard

    def begin(self) -> str:
        """Return the first words of the call, or the first question if the greeting was heard."""
        return self.scenario.greeting if not self.last_said else self._ask("start")

    def go_on(self) -> str:
        """Return what to say when the caller has said nothing since our last words."""
        return self._next_question() or self._say_confirmed()

    def say(self, message: SpokenMessage) -> None:
        """Remember words of ours that were heard."""
        self.last_said = message.written or message.text
        self.asked = self.scenario.find_question(message.text) or self.asked
        self.offered |= self.asked == "offer"

    def hear(self, text: str) -> str:
        """Take in one message of the caller and return the reply to it."""
        self.turns += 1
        if not text.strip():
            return _join(self._line("silent"), self._repeat_question())
        understood = self.scenario.understand(text)
        reply = self._answer(understood)
        if reply is None:
            self.confused += 1
            lines = self.scenario.lines.unknown
            return _join(lines[(self.confused - 1) % len(lines)], self._repeat_question())
        self.confused = 0
        return reply

    def _answer(self, understood: Understood) -> str | None:
        """Return the reply to a message, or None if it means nothing here."""
        asked = self.asked
        intents = understood.intents
        if "cancel" in intents and not understood.groups:
            return self._cancel()
        if understood.groups:
            return self._change(understood)
        if "repeat" in intents:
            return self.last_said or self.scenario.greeting
        if "summary" in intents:
            return self._summarise()
        if intents == ("correct",) and self.order.lines:
            return self._ask("change")
        reply = self._decide(intents, asked)
        if reply is None and "goodbye" in intents:
            reply = self._line("goodbye")
        return reply if reply is not None else self._chat(intents)

    def _decide(self, intents: tuple[str, ...], asked: str | None) -> str | None:
        """Answer yes, no, "that's all" and "whatever", each by what was asked."""
        decisions = [name for name in ("done", "no", "yes", "any") if name in intents]
        if not decisions:
            return None
        if self.confirmed:
            return self._say_confirmed()
        self.asked = None
        match decisions[0], asked:
            case "done" | "yes", "confirm":
                return self._confirm()
            case "no", "confirm":
                return self._ask("change")
            case "yes", "offer":
                return self._ask("which")
            case "yes", "more":
                return self._ask("what_else")
            case "no" | "any", "offer" | "which":
                return _join(self._line("okay"), self._next_question())
            case ("done", _) | ("no", "more" | "what_else" | "change" | None):
                return self._finish()
            case ("any", _) if self._fill_default():
                return self._acknowledge(Change(lines=tuple(self.order.lines[-1:])))
            case _:
                return _join(self._line("okay"), self._next_question())

    def _change(self, understood: Understood) -> str:
        slot = self.asked.removeprefix("slot:") if self.asked and self.asked.startswith("slot:") else None
        finishing = "done" in understood.intents or ("no" in understood.intents and self.asked == "more")
        change = self.order.change(understood, asked=slot)
        self.finished |= finishing or self.confirmed
        self.confirmed = False
        self.asked = None
        if not self.order.lines:
            self.finished = False
        correcting = "correct" in understood.intents or "no" in understood.intents
        return self._acknowledge(change, correcting=correcting)

    def _acknowledge(self, change: Change, *, correcting: bool = False) -> str:
        """Say what was understood, then ask what comes next; the reading back says it anyway."""
        question = self._next_question()
        if change.declined:
            said = self._line("declined", what=" or ".join(change.declined))
        elif self.finished and self.order.find_missing() is None:
            said = ""
        elif change.removed:
            said = self._line("removed")
        elif any(line.values.get(self.scenario.vocabulary.head.name) for line in change.lines):
            said = self._line("changed" if correcting else "taken", items=self.order.describe(change.lines))
        else:
            said = self._line("okay")
        return _join(said, question)

    def _cancel(self) -> str:
        empty = not self.order.lines
        self.order.clear()
        self.finished = self.confirmed = self.offered = False
        self.asked = None
        return _join(self._line("nothing" if empty else "cancelled"), self._ask("start"))

    def _finish(self) -> str:
        if not self.order.lines:
            return _join(self._line("okay"), self._ask("start"))
        self.finished = True
        return self._next_question()

    def _confirm(self) -> str:
        if not self.order.lines or self.order.find_missing():
            return self._finish()
        self.confirmed = True
        return self._line("closing")

    def _say_confirmed(self) -> str:
        return self._line("confirmed", items=self.order.describe(self.order.lines))

    def _summarise(self) -> str:
        if not self.order.lines:
            return _join(self._line("nothing"), self._ask("start"))
        if self.finished and not self.confirmed and not self.order.find_missing():
            return self._next_question()
        items = self.order.describe(self.order.lines)
        return _join(self._line("read_back", items=items), self._next_question())

    def _chat(self, intents: tuple[str, ...]) -> str | None:
        name = next((name for name in intents if name in self.scenario.vocabulary.answers), None)
        if name is None:
            return None
        answer = self.scenario.vocabulary.answers[name]
        said = answer.say[self.turns % len(answer.say)]
        return _join(said, self._repeat_question()) if answer.ask else said

    def _fill_default(self) -> bool:
        missing = self.order.find_missing()
        if missing is None or not missing[1].default:
            return False
        line, slot = missing
        line.values[slot.name] = (slot.default,)
        return True

    def _next_question(self) -> str:
        """Return the question that the order needs next; "" once it is confirmed."""
        if self.confirmed:
            return ""
        if not self.order.lines:
            return self._ask("start")
        missing = self.order.find_missing()
        if missing is not None:
            line, slot = missing
            return self._ask(f"slot:{slot.name}", item=self.order.head_of(line))
        if self.finished:
            read_back = self._line("read_back", items=self.order.describe(self.order.lines))
            return _join(read_back, self._ask("confirm"))
        if not self.offered and not self.order.has_additions():
            return self._ask("offer")
        return self._ask("more")

    def _repeat_question(self) -> str:
        """Return the open question once more, in other words."""
        if self.asked in {"offer", "which", "change", "what_else"}:
            return self._ask(self.asked)
        return self._next_question()

    def _ask(self, kind: str, *, item: str = "") -> str:
        wordings = self.scenario.questions[kind]
        return wordings[self.turns % len(wordings)].format(item=item)

    def _line(self, name: str, *, items: str = "", what: str = "") -> str:
        wordings: tuple[str, ...] = getattr(self.scenario.lines, name)
        line = wordings[self.turns % len(wordings)].format(items=items, what=what)
        return line[0].upper() + line[1:]


def _join(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
