"""Words and keys from wonderwords' lists; a tenth of the words is held out from training."""

import re
from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal, get_args

from needlework.tasks.seeds import hash_fraction

Part = Literal["all", "training", "held_out"]
WordSource = Part | list[str]
"""Part of wonderwords' lists, or words of the user's."""
Kind = Literal["adjective", "noun", "verb"]

HELD_OUT_FRACTION = 0.1
_PLAIN_WORD = re.compile(r"[a-z]+")


@cache
def _read_list(name: str) -> tuple[str, ...]:
    text = files("wonderwords").joinpath("assets", f"{name}list.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines())


def is_held_out(word: str) -> bool:
    """Whether `word` is held out from training, which depends on its hash alone."""
    return hash_fraction(f"held-out word {word}") < HELD_OUT_FRACTION


@cache
def words(kind: Kind, part: Part = "all") -> tuple[str, ...]:
    """The words of one kind, sorted.

    Only lower-case words without hyphens, so that a key has exactly one hyphen, and without those
    in wonderwords' list of profanities. `part` selects the training words or the held-out ones.
    """
    profane = set(_read_list("profanity"))
    plain = {word for word in _read_list(kind) if _PLAIN_WORD.fullmatch(word)} - profane
    if part != "all":
        plain = {word for word in plain if is_held_out(word) == (part == "held_out")}
    return tuple(sorted(plain))


@cache
def all_words() -> tuple[str, ...]:
    """RULER's word list: wonderwords' distinct nouns, adjectives and verbs, sorted."""
    return tuple(sorted({word for kind in get_args(Kind) for word in _read_list(kind)}))


def count_keys(part: WordSource) -> int:
    """The number of distinct keys."""
    if isinstance(part, list):
        return len(part)
    return len(words("adjective", part)) * len(words("noun", part))


def draw_keys(random: Random, count: int, part: WordSource = "all") -> list[str]:
    """Draw `count` distinct keys: adjectives and nouns joined by a hyphen, or the user's words."""
    if isinstance(part, list):
        return random.sample(part, count)
    adjectives, nouns = words("adjective", part), words("noun", part)
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[f"{random.choice(adjectives)}-{random.choice(nouns)}"] = None
    return list(keys)
