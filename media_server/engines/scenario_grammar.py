"""The grammar that a recogniser may hear by, made from a scenario's vocabulary, so that the words stand once.

In JSGF (https://www.w3.org/TR/jsgf/), shaped for pocketsphinx. It copies a rule at every mention and closes over all
empty transitions, so `*` and `+` over many words cost seconds of CPU for a second of speech; a rule that ends in itself
is a loop without copies. It shares the chance of a rule among its alternatives: what is seldom said must weigh little,
or every other word costs more than the noise beside the grammar.
"""

from collections.abc import Mapping

from media_server.engines.scenario_vocabulary import Place, Vocabulary

# Slots found in 45 spoken orders (158 slots): 136 when nearly all weighs 1 and one loop holds all that stands before
# a drink; 148 with articles apart and aliases at 0.2; 153 with these. They were chosen on those recordings, so other
# callers may fare worse. One weight halved: 153 each. Doubled: aliases 148, counts 155, amounts 154, the others 153.
_ALIAS = 0.1
_COUNT = 0.1
_AMOUNT = 0.3
_NEGATION = 0.02
_CORRECTION = 0.1
_ALONE = 0.2
_ONE_MORE = 0.1
_CHANGE = 0.1

_ARTICLES = ("a", "an")


def write_grammar(vocabulary: Vocabulary) -> str:
    """Return the JSGF of all that the caller may say, with the public rule `<utterance>`."""
    words = vocabulary.words
    articles = {word: 1.0 if word in _ARTICLES else _COUNT for word in (*words.counts, *words.definite)}
    amounts = dict.fromkeys(words.quantities, _AMOUNT)
    negations = dict.fromkeys(words.negations, _NEGATION)
    links = dict.fromkeys((*words.links, "and"), 1.0)
    linked = {f"{link} {amount}": _AMOUNT for link in links for amount in amounts}
    changes = dict.fromkeys(words.links, 1.0) | amounts | negations | dict.fromkeys(words.removals, _NEGATION)
    corrections = vocabulary.intents["correct"]
    leads = (*corrections, *(f"no {phrase}" for phrase in corrections), "no", "yes", "and")
    openings = dict.fromkeys(words.openings, 1.0) | dict.fromkeys(leads, _CORRECTION)
    alone = [phrase for name, phrases in vocabulary.intents.items() if name != "correct" for phrase in phrases]
    alone += [phrase for answer in vocabulary.answers.values() for phrase in answer.phrases]
    please = f"[{_any_of(dict.fromkeys(words.politeness, 1.0))}]"
    return "\n".join(
        (
            "#JSGF V1.0;",
            "grammar scenario;",
            f"<article> = {_any_of(articles)};",
            f"<modifier> = {_any_of(_phrases(vocabulary, 'before'))};",
            f"<head> = {_any_of(_phrases(vocabulary, 'head'))};",
            f"<addition> = {_any_of(_phrases(vocabulary, 'with'))};",
            "<order> = [<article>] <line>;",
            "<line> = <modifier> <line> | <head> [<tail>];",
            f"<tail> = /1/ {_any_of(links | linked | negations)} <addition> [<tail>] | /{_ONE_MORE}/ and <order>;",
            f"<change> = [{_any_of(changes)}] <addition> [and <change>] | [a] <modifier> [<change>];",
            f"public <utterance> = /{_ALONE}/ {_any_of(dict.fromkeys(alone, 1.0))}"
            f" | /1/ [{_any_of(openings)}] <order> {please}"
            f" | /{_CHANGE}/ [{_any_of(dict.fromkeys(leads, 1.0))}] <change> {please};",
            "",
        )
    )


def _phrases(vocabulary: Vocabulary, place: Place) -> dict[str, float]:
    return {
        phrase: 1.0 if phrase == value else _ALIAS
        for slot in vocabulary.slots.values()
        if slot.place == place
        for phrase, value in slot.phrases.items()
    }


def _any_of(weights: Mapping[str, float]) -> str:
    return "(" + " | ".join(f"/{weight:g}/ {phrase}" for phrase, weight in weights.items()) + ")"
