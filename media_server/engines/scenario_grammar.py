"""The grammar that a recogniser may hear by, made from a scenario's vocabulary, so that the words stand once.

In JSGF (https://www.w3.org/TR/jsgf/), in the shape that pocketsphinx decodes fast: it copies a rule at every mention
and closes over all empty transitions, so `*` and `+` over many words cost seconds of CPU per second of speech. A rule
that ends in itself is a loop without copies, and lists that lie flat in one rule are one state.
"""

from collections.abc import Iterable

from media_server.engines.scenario_vocabulary import Vocabulary


def write_grammar(vocabulary: Vocabulary) -> str:
    """Return the JSGF of all that the caller may say, with the public rule `<utterance>`."""
    words = vocabulary.words
    slots = vocabulary.slots.values()
    before = _alternatives(
        (*words.counts, *words.definite, *(phrase for slot in slots if slot.place == "before" for phrase in slot.phrases))
    )
    head = _alternatives(vocabulary.head.phrases)
    addition = _alternatives(phrase for slot in slots if slot.place == "with" for phrase in slot.phrases)
    amounts = (*words.quantities, *_spoken_negations(vocabulary))
    links = [*words.links, "and", *(f"{link} {amount}" for link in (*words.links, "and") for amount in words.quantities)]
    alone = [phrase for name, phrases in vocabulary.intents.items() if name != "correct" for phrase in phrases]
    alone += [phrase for answer in vocabulary.answers.values() for phrase in answer.phrases]
    corrections = vocabulary.intents["correct"]
    openings = (*words.openings, *corrections, *(f"no {phrase}" for phrase in corrections), "no", "yes", "and")
    please = _alternatives(words.politeness)
    return "\n".join(
        (
            "#JSGF V1.0;",
            "grammar scenario;",
            f"<before> = {before};",
            f"<head> = {head};",
            f"<addition> = {addition};",
            f"<tail> = {_alternatives([*links, *amounts])} <addition> [<tail>] | and <order>;",
            f"<order> = <before> [<order>] | <head> [<tail>] | [{_alternatives([*words.links, *amounts])}] <addition> [<order>];",
            f"public <utterance> = {_alternatives(alone)} [{please}] | [{_alternatives(openings)}] <order> [{please}];",
            "",
        )
    )


def _spoken_negations(vocabulary: Vocabulary) -> tuple[str, ...]:
    return vocabulary.words.negations


def _alternatives(phrases: Iterable[str]) -> str:
    return "(" + " | ".join(dict.fromkeys(phrases)) + ")"
