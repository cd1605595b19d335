"""Haystack sentences in the form of wonderwords' RandomSentence, from a seed of our own."""

from functools import cache
from random import Random

from needlework.tasks.words import Part, words

_VOWELS = "aeiou"
_ARTICLES = ("the",) * 5 + ("a",) * 3 + ("",) * 2


def third_person(verb: str) -> str:
    """The verb as he, she or it does it."""
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        return f"{verb[:-1]}ies"
    return f"{verb}s"


@cache
def _verbs(part: Part) -> tuple[str, ...]:
    return tuple(third_person(verb) for verb in words("verb", part))


def sentence(random: Random, part: Part = "all") -> str:
    """One sentence: article (or none), adjective, noun, verb, noun."""
    nouns = words("noun", part)
    adjective = random.choice(words("adjective", part))
    article = random.choice(_ARTICLES)
    if article == "a" and adjective[0] in _VOWELS:
        article = "an"
    subject = f"{article} {adjective}" if article else adjective
    verb = random.choice(_verbs(part))
    start = subject[0].upper() + subject[1:]
    return f"{start} {random.choice(nouns)} {verb} {random.choice(nouns)}."
