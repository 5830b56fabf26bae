"""The order so far: its lines, how a sentence of the caller changes them, and how they are read back."""

from dataclasses import dataclass, field

from media_server.engines.scenario_understanding import Group, Mention, Understood
from media_server.engines.scenario_vocabulary import Slot, Vocabulary

LINES_MAX = 20
"""More drinks than this are not taken: a reply has to stay speakable."""

_COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(slots=True)
class OrderLine:
    """One kind of drink. `values`: slot -> its values; an empty tuple: the caller wants none of it."""

    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a sentence did to the order.

    Attributes:
        lines: the lines that are new or were changed.
        removed: whether a line went.
        declined: the nouns of what is not wanted, if nothing else was said.
    """

    lines: tuple[OrderLine, ...]
    removed: bool = False
    declined: tuple[str, ...] = ()


class Order:
    """The lines ordered so far."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._head = vocabulary.head.name
        self._current: OrderLine | None = None
        self.lines: list[OrderLine] = []

    def find_missing(self) -> tuple[OrderLine, Slot] | None:
        """Return the first line that lacks something required, and what it lacks: the head before all else."""
        slots = sorted(self._vocabulary.slots.values(), key=lambda slot: slot.name != self._head)
        return next(
            ((line, slot) for line in self.lines for slot in slots if slot.required and not line.values.get(slot.name)),
            None,
        )

    def has_additions(self) -> bool:
        """Return whether the caller has said what goes with any line, or that nothing does."""
        return any(self._vocabulary.slots[name].place == "with" for line in self.lines for name in line.values)

    def clear(self) -> None:
        """Forget all lines."""
        self.lines.clear()
        self._current = None

    def change(self, understood: Understood, *, asked: str | None) -> Change:
        """Change the order as the caller says.

        Args:
            asked: the slot that the agent asked for last, if it did.
        """
        intents = understood.intents
        correcting = "correct" in intents or "no" in intents
        touched: list[OrderLine] = []
        removed: OrderLine | None = None
        for group in understood.groups:
            head = next((mention for mention in group.mentions if mention.slot == self._head), None)
            if head is not None and head.negation:
                removed = self._remove(head.value) or removed
                continue
            if removed is not None and head is not None:  # "not a latte, a mocha": what else was said of it stays
                self.lines.append(removed)
                lines, removed = [removed], None
            else:
                lines = self._find_lines(group, head, correcting=correcting, asked=asked, for_all=understood.for_all)
            for line in lines:
                self._fill(line, group)
            touched += [line for line in lines if not any(line is other for other in touched)]
        mentions = [mention for group in understood.groups for mention in group.mentions]
        only_declined = bool(mentions) and all(mention.negation and mention.slot != self._head for mention in mentions)
        nouns = dict.fromkeys(self._declined_noun(mention) for mention in mentions) if only_declined else {}
        return Change(lines=tuple(touched), removed=removed is not None, declined=tuple(nouns))

    def describe(self, lines: list[OrderLine] | tuple[OrderLine, ...]) -> str:
        """Return the lines in words: "a large latte with oat milk and two small espressos"."""
        return _join([self.describe_line(line) for line in lines])

    def describe_line(self, line: OrderLine) -> str:
        """Return one line in words."""
        slots = self._vocabulary.slots.values()
        before = [value for slot in slots if slot.place == "before" for value in line.values.get(slot.name, ())]
        head = self.head_of(line)
        additions = [value for slot in slots if slot.place == "with" for value in line.values.get(slot.name, ())]
        words = " ".join([*before, head if line.count == 1 else f"{head}s"])
        if line.count > 1:
            words = f"{_say_count(line.count)} {words}"
        else:
            words = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
        return f"{words} with {_join(additions)}" if additions else words

    def head_of(self, line: OrderLine) -> str:
        """Return what is ordered ("latte"), or the slot's name if that is not yet known."""
        return next(iter(line.values.get(self._head, ())), self._head)

    def _find_lines(
        self, group: Group, head: Mention | None, *, correcting: bool, asked: str | None, for_all: bool
    ) -> list[OrderLine]:
        """Return the lines that a group is about; a new one if it is about none."""
        if head is None:
            if for_all and self.lines:
                return list(self.lines)
            if asked is not None and any(mention.slot == asked for mention in group.mentions):
                missing = next((line for line in self.lines if not line.values.get(asked)), None)
                if missing is not None:
                    return [missing]
            return [self._current or self._add()] if self.lines or group.mentions else []
        same = [line for line in self.lines if line.values.get(self._head) == (head.value,)]
        if same and not group.joined and (group.definite or self._lacks(same[-1])):
            return [same[-1]]
        headless = next((line for line in self.lines if not line.values.get(self._head)), None)
        if headless is not None:
            return [headless]
        if correcting and not group.joined and self._current is not None:
            return [self._current]
        return [self._add()] if len(self.lines) < LINES_MAX else []

    def _lacks(self, line: OrderLine) -> bool:
        return any(slot.required and not line.values.get(slot.name) for slot in self._vocabulary.slots.values())

    def _add(self) -> OrderLine:
        line = OrderLine()
        self.lines.append(line)
        return line

    def _remove(self, head: str) -> OrderLine | None:
        line = next((line for line in reversed(self.lines) if line.values.get(self._head) == (head,)), None)
        if line is not None:
            self.lines = [other for other in self.lines if other is not line]
            self._current = self.lines[-1] if self.lines else None
        return line

    def _fill(self, line: OrderLine, group: Group) -> None:
        self._current = line
        if group.count is not None and (group.count > 1 or any(m.slot == self._head for m in group.mentions)):
            line.count = group.count
        for mention in group.mentions:
            slot = self._vocabulary.slots[mention.slot]
            known = line.values.get(slot.name, ())
            if not mention.negation:
                rest = tuple(value for value in known if slot.many and value != mention.value)
                line.values[slot.name] = (*rest, mention.value)
            elif slot.many:
                line.values[slot.name] = tuple(value for value in known if value != mention.value)
            elif self._is_correction(mention, known):
                line.values[slot.name] = (mention.value,)
            else:
                line.values[slot.name] = ()

    def _is_correction(self, mention: Mention, known: tuple[str, ...]) -> bool:
        """Return whether "no oat milk" means "no, oat milk": without its comma, and there is another milk."""
        slot = self._vocabulary.slots[mention.slot]
        other = bool(known) and not any(value.endswith(mention.value) for value in known)
        return mention.negation == "no" and mention.value != slot.noun and other

    def _declined_noun(self, mention: Mention) -> str:
        slot = self._vocabulary.slots[mention.slot]
        return mention.value if slot.many else slot.noun


def _say_count(n: int) -> str:
    return _COUNT_WORDS[n] if n < len(_COUNT_WORDS) else str(n)


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
