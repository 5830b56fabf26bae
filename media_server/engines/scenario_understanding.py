"""What a sentence of the caller means: slots, counts and intents, found by the longest phrases that are known.

text -> words -> senses (one for each longest known phrase; unknown words are skipped) -> groups (one for each drink)
"""

import itertools
import re
from dataclasses import dataclass
from typing import TypeAlias

from media_server.engines.scenario_vocabulary import Slot, Vocabulary
from media_server.errors import ConfigError

_WORD = re.compile(r"[a-z']+|\d+|[,.;:!?]")
_PHRASE = re.compile(r"[a-z']+( [a-z']+)*")
_STOP = re.compile(r"[,.;:!?]")


@dataclass(frozen=True, slots=True)
class Mention:
    """A slot's value was said; `negation` is the word that takes it away ("no", "without"), "" if none does."""

    slot: str
    value: str
    negation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What was said about one line of the order.

    Attributes:
        count: how many, if that was said.
        joined: said as one more ("and an espresso").
        definite: said as one that exists already ("the espresso").
    """

    mentions: tuple[Mention, ...]
    count: int | None = None
    joined: bool = False
    definite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a sentence means. `intents`: in the order said; `for_all`: it concerns every line of the order."""

    groups: tuple[Group, ...] = ()
    intents: tuple[str, ...] = ()
    for_all: bool = False

    @property
    def slots(self) -> dict[str, str]:
        """Return the first value said for each slot; "no milk" where there is to be none."""
        found: dict[str, str] = {}
        for mention in (mention for group in self.groups for mention in group.mentions):
            found.setdefault(mention.slot, f"no {mention.value}" if mention.negation else mention.value)
        return found


@dataclass(frozen=True, slots=True)
class _Intent:
    name: str


@dataclass(frozen=True, slots=True)
class _Count:
    n: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class _Small:
    """A small word that steers: `join`, `definite`, `all`, `stop` or `skip`."""

    kind: str


_Sense: TypeAlias = Mention | _Intent | _Count | _Small


class Understanding:
    """Finds what a scenario's vocabulary can mean.

    Raises:
        ConfigError: a phrase means two things, or can never be heard.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._head = vocabulary.head.name
        self._senses: dict[tuple[str, ...], _Sense] = {}
        for slot in vocabulary.slots.values():
            for phrase, value in slot.phrases.items():
                self._add_value(slot, phrase, value)
        for name, phrases in vocabulary.intents.items():
            self._add_all(phrases, _Intent(name))
        for name, answer in vocabulary.answers.items():
            self._add_all(answer.phrases, _Intent(name))
        words = vocabulary.words
        for phrase, n in words.counts.items():
            self._add(phrase, _Count(n, more=phrase == "another"))
        self._add_all(words.joiners, _Small("join"))
        self._add_all(words.definite, _Small("definite"))
        self._add_all(words.all, _Small("all"))
        self._add_all((*words.openings, *words.links, *words.politeness), _Small("skip"))
        self._known = {word for phrase in self._senses for word in phrase}
        self._longest = max(len(phrase) for phrase in self._senses)

    def understand(self, text: str) -> Understood:
        """Return what `text` means; nothing at all if no phrase is known."""
        senses = self._find_senses(self._split_words(text))
        intents = tuple(sense.name for sense in senses if isinstance(sense, _Intent))
        return Understood(groups=tuple(self._group(senses)), intents=intents, for_all=_Small("all") in senses)

    def _add_value(self, slot: Slot, phrase: str, value: str) -> None:
        self._add(phrase, Mention(slot.name, value))
        words = self._vocabulary.words
        if slot.quantified:
            for quantity in words.quantities:
                self._add(f"{quantity} {phrase}", Mention(slot.name, f"{quantity} {value}"))
        for negation in (*words.negations, *words.removals):
            self._add(f"{negation} {phrase}", Mention(slot.name, value, negation))

    def _add_all(self, phrases: tuple[str, ...], sense: _Sense) -> None:
        for phrase in phrases:
            self._add(phrase, sense)

    def _add(self, phrase: str, sense: _Sense) -> None:
        if not _PHRASE.fullmatch(phrase):
            raise ConfigError(f"the phrase {phrase!r} can never be heard; wanted lower-case words and single spaces")
        other = self._senses.setdefault(tuple(phrase.split()), sense)
        if other != sense:
            raise ConfigError(f"the phrase {phrase!r} means both {other} and {sense}; it may mean one thing")

    def _split_words(self, text: str) -> list[str]:
        spellings = self._vocabulary.spellings
        words: list[str] = []
        for written in _WORD.findall(text.lower().replace("’", "'")):
            word = written.strip("'")
            known = (form for form in (word, word.removesuffix("s")) if form in self._known or form in spellings)
            word = next(known, word)
            words.append(spellings.get(word, word))
        return words

    def _find_senses(self, words: list[str]) -> list[_Sense]:
        senses: list[_Sense] = []
        at = 0
        while at < len(words):
            for n in range(min(self._longest, len(words) - at), 0, -1):
                sense = self._senses.get(tuple(words[at : at + n]))
                if sense is not None:
                    senses.append(sense)
                    at += n
                    break
            else:
                if _STOP.fullmatch(words[at]):
                    senses.append(_Small("stop"))
                at += 1
        return senses

    def _group(self, senses: list[_Sense]) -> list[Group]:
        """Cut between any two heads, before what belongs to the second: "a latte with milk | and a large tea"."""
        heads = [i for i, sense in enumerate(senses) if isinstance(sense, Mention) and sense.slot == self._head]
        cuts = [self._find_cut(senses, one, two) for one, two in itertools.pairwise(heads)]
        groups = []
        for start, end in zip([0, *cuts], [*cuts, len(senses)], strict=True):
            part = senses[start:end]
            mentions = tuple(sense for sense in part if isinstance(sense, Mention))
            counts = [sense for sense in part if isinstance(sense, _Count)]
            if mentions or any(count.n > 1 for count in counts):
                first = next((i for i, sense in enumerate(part) if isinstance(sense, Mention)), len(part))
                groups.append(
                    Group(
                        mentions=mentions,
                        count=counts[-1].n if counts else None,
                        joined=_Small("join") in part[:first] or any(count.more for count in counts),
                        definite=_Small("definite") in part[:first],
                    )
                )
        return groups

    def _find_cut(self, senses: list[_Sense], one: int, two: int) -> int:
        def breaks(i: int) -> bool:
            sense = senses[i]
            return isinstance(sense, _Count) or (
                isinstance(sense, _Small) and sense.kind in {"join", "definite", "stop"}
            )

        cut = next((i for i in range(two - 1, one, -1) if breaks(i)), None)
        if cut is None:
            cut = two
            while cut - 1 > one and self._goes_before(senses[cut - 1]):
                cut -= 1
        while cut - 1 > one and breaks(cut - 1):
            cut -= 1
        return cut

    def _goes_before(self, sense: _Sense) -> bool:
        return isinstance(sense, Mention) and self._vocabulary.slots[sense.slot].place == "before"
