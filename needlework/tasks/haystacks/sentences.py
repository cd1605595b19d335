"""Random sentences in the form of wonderwords' RandomSentence, from our seeds."""

from functools import cache
from random import Random

from needlework.tasks.haystacks.words import Part, words

_VOWELS = "aeiou"
_ARTICLES = ("The",) * 5 + ("A",) * 3 + ("",) * 2


def third_person(verb: str) -> str:
    """The third person singular of a verb."""
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        return f"{verb[:-1]}ies"
    return f"{verb}s"


@cache
def _verbs(part: Part) -> tuple[str, ...]:
    return tuple(third_person(verb) for verb in words("verb", part))


def random_sentence(random: Random, part: Part = "all") -> str:
    """Draw a sentence: article (or none), adjective, noun, verb, noun."""
    draw = random.random  # several times faster than choice, and the same in every Python
    adjectives, nouns, verbs = words("adjective", part), words("noun", part), _verbs(part)
    adjective = adjectives[int(draw() * len(adjectives))]
    article = _ARTICLES[int(draw() * len(_ARTICLES))]
    subject = nouns[int(draw() * len(nouns))]
    verb = verbs[int(draw() * len(verbs))]
    object_ = nouns[int(draw() * len(nouns))]
    if article == "A" and adjective[0] in _VOWELS:
        article = "An"
    start = f"{article} {adjective}" if article else adjective.capitalize()
    return f"{start} {subject} {verb} {object_}."
