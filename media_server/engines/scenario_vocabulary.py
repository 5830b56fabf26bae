"""What a scenario knows and says, as plain data: the words that are listened for, the slots they fill, the lines."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Place: TypeAlias = Literal["before", "head", "with"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One thing to know about a line of the order.

    Attributes:
        place: where its value is said: before the head ("large"), the head ("latte"), after a "with" ("oat milk").
        noun: what it is called when there is none of it ("no milk").
        phrases: what is said -> the value that it means.
        required: ask until it is known.
        many: several values may stand together.
        quantified: a quantity may go before its value and becomes part of it.
        default: the value if the caller leaves it to us; "" if that cannot be.
        ask: the questions for it.
    """

    name: str
    place: Place
    noun: str
    phrases: dict[str, str]
    required: bool = False
    many: bool = False
    quantified: bool = False
    default: str = ""
    ask: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The small words of an order.

    Attributes:
        openings: how an order begins ("can i get").
        joiners: what stands between two drinks or two additions.
        links: what stands before an addition ("with").
        definite: what makes a drink one that was named before ("the").
        all: what makes a sentence concern every drink ("both").
        negations: what takes a value away, in the middle of an order ("without").
        removals: what takes a value away at the beginning of a sentence ("hold the").
        quantities: what may go before a value and becomes part of it ("a lot of").
        counts: how many drinks, articles too.
    """

    openings: tuple[str, ...]
    joiners: tuple[str, ...]
    links: tuple[str, ...]
    politeness: tuple[str, ...]
    definite: tuple[str, ...]
    all: tuple[str, ...]
    negations: tuple[str, ...]
    removals: tuple[str, ...]
    quantities: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Intents:
    """What the caller may mean beside the order: the phrases of each. The names are the engine's own."""

    yes: tuple[str, ...]
    no: tuple[str, ...]
    done: tuple[str, ...]
    correct: tuple[str, ...]
    any: tuple[str, ...]
    cancel: tuple[str, ...]
    repeat: tuple[str, ...]
    summary: tuple[str, ...]
    goodbye: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Small talk: what to listen for, what to say, and whether the open question follows."""

    phrases: tuple[str, ...]
    say: tuple[str, ...]
    ask: bool = False


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions beside those for a slot, each in several wordings."""

    start: tuple[str, ...]
    offer: tuple[str, ...]
    which: tuple[str, ...]
    more: tuple[str, ...]
    what_else: tuple[str, ...]
    confirm: tuple[str, ...]
    change: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """What the agent says that is no question, each in several wordings. `{items}`: drinks; `{what}`: a noun."""

    taken: tuple[str, ...]
    changed: tuple[str, ...]
    declined: tuple[str, ...]
    removed: tuple[str, ...]
    okay: tuple[str, ...]
    read_back: tuple[str, ...]
    closing: tuple[str, ...]
    confirmed: tuple[str, ...]
    cancelled: tuple[str, ...]
    nothing: tuple[str, ...]
    goodbye: tuple[str, ...]
    unknown: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """All that is listened for. `spellings`: written word -> the word as it is said."""

    slots: dict[str, Slot]
    words: Words
    intents: dict[str, tuple[str, ...]]
    answers: dict[str, Answer]
    spellings: dict[str, str]

    @property
    def head(self) -> Slot:
        """Return the slot that names what is ordered."""
        return next(slot for slot in self.slots.values() if slot.place == "head")
