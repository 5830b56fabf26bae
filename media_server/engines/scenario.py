"""The scenario of an embedded agent: read from a TOML file, strictly, so that a mistake is found at start.

What may stand in the file is what the dataclasses of `scenario_vocabulary` hold; config/scenarios/coffee.toml shows it.
"""

import difflib
import functools
import re
import string
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from media_server.engines.scenario_grammar import write_grammar
from media_server.engines.scenario_understanding import Understanding, Understood
from media_server.engines.scenario_vocabulary import Answer, Intents, Lines, Questions, Slot, Vocabulary, Words
from media_server.errors import ConfigError

# A question counts as asked once its first words were heard; they must tell its kind.
CUE_WORDS = 3

TEXT_CHARS_MAX = 1000
"""More than a minute of speech; a longer pasted text would hold up the other calls."""

SENTENCES_KEPT = 1024

_SENTENCE_END = re.compile(r"[.!?]+")
_PLACES = ("before", "head", "with")
_TABLES = ("greeting", "words", "spellings", "slots", "intents", "answers", "questions", "lines")
_LINE_FIELDS = {"taken": "items", "changed": "items", "read_back": "items", "confirmed": "items", "declined": "what"}

_Table = TypeVar("_Table", Words, Intents, Questions, Lines, Answer)


class Scenario:
    """What an embedded agent knows and says.

    Attributes:
        greeting: the line with which a call begins.
        questions: kind -> its wordings; a slot's own question has the kind `slot:NAME`.
    """

    def __init__(self, *, greeting: str, vocabulary: Vocabulary, questions: Questions, lines: Lines) -> None:
        self.greeting = greeting
        self.vocabulary = vocabulary
        self.lines = lines
        self.questions: dict[str, tuple[str, ...]] = {
            field.name: getattr(questions, field.name) for field in fields(Questions)
        }
        self.questions |= {f"slot:{slot.name}": slot.ask for slot in vocabulary.slots.values() if slot.ask}
        # Each reply replays the call from its beginning: a sentence is taken apart once.
        self._understand = functools.lru_cache(SENTENCES_KEPT)(Understanding(vocabulary).understand)
        self._kinds = _index_cues(self.questions)

    def understand(self, text: str) -> Understood:
        """Return what a message of the caller means; what goes beyond `TEXT_CHARS_MAX` is not read."""
        return self._understand(text[:TEXT_CHARS_MAX])

    def grammar(self) -> str:
        """Return the JSGF of all that the caller may say, for a recogniser."""
        return write_grammar(self.vocabulary)

    def find_question(self, heard: str) -> str | None:
        """Return the kind of the last question of which the caller heard at least the first words; None: of none.

        Only the last `TEXT_CHARS_MAX` are read: a client may have put in messages of any length as the agent's.
        """
        sentences = _SENTENCE_END.split(heard[-TEXT_CHARS_MAX:])
        cues = (_split_words(sentence)[:CUE_WORDS] for sentence in reversed(sentences))
        return next((self._kinds[cue] for cue in cues if cue in self._kinds), None)


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario's file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; says where, and what would be right.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the scenario cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return _Reader().read(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Reader:
    """Turns raw TOML into a scenario; each message names the table."""

    def read(self, raw: dict[str, Any]) -> Scenario:
        _check_names("the file", raw, _TABLES)
        _check_present("the file", raw, [name for name in _TABLES if name not in {"spellings", "answers"}])
        intents = self._read_table(Intents, "intents", raw["intents"])
        slots = {name: self._read_slot(name, table) for name, table in _tables("slots", raw["slots"])}
        heads = [slot.name for slot in slots.values() if slot.place == "head"]
        if len(heads) != 1 or not slots[heads[0]].required or not slots[heads[0]].ask:
            raise ConfigError(f"[slots]: exactly one is required, asks and has place 'head', found {heads}")
        vocabulary = Vocabulary(
            slots=slots,
            words=self._read_table(Words, "words", raw["words"]),
            intents={field.name: getattr(intents, field.name) for field in fields(Intents)},
            answers={
                name: self._read_table(Answer, f"answers.{name}", table)
                for name, table in _tables("answers", raw.get("answers", {}))
            },
            spellings={
                key: _text(f"spellings.{key}", value) for key, value in _tables("spellings", raw.get("spellings", {}))
            },
        )
        for name in vocabulary.answers.keys() & vocabulary.intents.keys():
            raise ConfigError(f"[answers.{name}]: {name!r} is an intent of the engine's own; choose another name")
        return Scenario(
            greeting=_text("greeting", raw["greeting"]),
            vocabulary=vocabulary,
            questions=self._read_table(Questions, "questions", raw["questions"]),
            lines=self._read_table(Lines, "lines", raw["lines"]),
        )

    def _read_slot(self, name: str, table: Any) -> Slot:
        where = f"slots.{name}"
        _check_names(where, table, ("place", "noun", "required", "many", "quantified", "default", "ask", "values"))
        _check_present(where, table, ("place", "values"))
        if table["place"] not in _PLACES:
            raise ConfigError(f"[{where}] place: found {table['place']!r}, wanted one of {', '.join(_PLACES)}")
        phrases: dict[str, str] = {}
        for value, others in _tables(f"{where}.values", table["values"]):
            for phrase in (value, *_texts(f"{where}.values.{value}", others, empty=True)):
                if phrases.setdefault(phrase, value) != value:
                    raise ConfigError(f"[{where}.values]: {phrase!r} means both {phrases[phrase]!r} and {value!r}")
        slot = Slot(
            name=name,
            place=table["place"],
            noun=_text(f"{where}.noun", table.get("noun", name)),
            phrases=phrases,
            required=_truth(f"{where}.required", table.get("required", False)),
            many=_truth(f"{where}.many", table.get("many", False)),
            quantified=_truth(f"{where}.quantified", table.get("quantified", False)),
            default=_text(f"{where}.default", table["default"]) if "default" in table else "",
            ask=_lines(f"{where}.ask", table.get("ask", []), "item", empty=True),
        )
        if slot.required and not slot.ask:
            raise ConfigError(f"[{where}]: it is required, so it wants at least one question in 'ask'")
        if slot.default and slot.default not in phrases.values():
            raise ConfigError(f"[{where}] default: found {slot.default!r}{_suggest(slot.default, phrases)}")
        return slot

    def _read_table(self, kind: type[_Table], where: str, table: Any) -> _Table:
        if not isinstance(table, dict):
            raise ConfigError(f"[{where}]: found {table!r}, wanted a table")
        known = {field.name: field for field in fields(kind)}
        _check_names(where, table, tuple(known))
        _check_present(where, table, [name for name, field in known.items() if field.default is MISSING])
        values: dict[str, Any] = {}
        for name, value in table.items():
            at = f"{where}.{name}"
            if known[name].type is bool:
                values[name] = _truth(at, value)
            elif name == "counts":
                values[name] = {word: _count(f"{at}.{word}", n) for word, n in _tables(at, value)}
            elif kind is Lines:
                values[name] = _lines(at, value, _LINE_FIELDS.get(name, ""))
            else:
                values[name] = _texts(at, value)
        return kind(**values)


def _index_cues(questions: dict[str, tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    kinds: dict[tuple[str, ...], str] = {}
    for kind, wordings in questions.items():
        for wording in wordings:
            cue = _split_words(wording)[:CUE_WORDS]
            if any("{" in word for word in wording.split()[:CUE_WORDS]):
                raise ConfigError(f"the question {wording!r} has a field among its first {CUE_WORDS} words")
            if kinds.setdefault(cue, kind) != kind:
                raise ConfigError(f"the question {wording!r} ({kind}) begins like one of {kinds[cue]}")
    return kinds


def _split_words(text: str) -> tuple[str, ...]:
    return tuple("".join(sign for sign in text.lower() if sign.isalnum() or sign.isspace()).split())


def _check_names(where: str, table: Any, known: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"[{where}]: found {table!r}, wanted a table")
    for name in table:
        if name not in known:
            raise ConfigError(f"[{where}]: unknown name {name!r}{_suggest(name, known)}")


def _check_present(where: str, table: dict[str, Any], names: Any) -> None:
    for name in names:
        if name not in table:
            raise ConfigError(f"[{where}]: {name!r} is missing")


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"


def _tables(where: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ConfigError(f"[{where}]: found {value!r}, wanted a table")
    return list(value.items())


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"[{where}]: found {value!r}, wanted a text")
    return value


def _texts(where: str, value: Any, *, empty: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not (value or empty):
        raise ConfigError(f"[{where}]: found {value!r}, wanted a list of texts")
    return tuple(_text(where, text) for text in value)


def _lines(where: str, value: Any, field: str, *, empty: bool = False) -> tuple[str, ...]:
    lines = _texts(where, value, empty=empty)
    for line in lines:
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(line) if name is not None}
        except ValueError as error:
            raise ConfigError(f"[{where}]: {line!r}: {error}") from None
        if used - {field}:
            raise ConfigError(f"[{where}]: {line!r} has {sorted(used)}, wanted {{{field}}} or no field at all")
    return lines


def _truth(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"[{where}]: found {value!r}, wanted true or false")
    return value


def _count(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"[{where}]: found {value!r}, wanted a number from 1")
    return value
