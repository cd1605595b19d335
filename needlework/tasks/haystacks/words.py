"""Words and keys: wonderwords' lists read as data, some words held out from training."""

import re
from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal, get_args

from needlework.tasks.seeds import share

Part = Literal["all", "training", "held_out"]
Kind = Literal["adjective", "noun", "verb"]

HELD_OUT_SHARE = 0.1
_PLAIN_WORD = re.compile(r"[a-z]+")


@cache
def _listed(name: str) -> tuple[str, ...]:
    text = files("wonderwords").joinpath("assets", f"{name}list.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines())


def is_held_out(word: str) -> bool:
    """Whether training never sees `word`: a tenth of the words, told by their hash alone."""
    return share(f"held-out word {word}") < HELD_OUT_SHARE


@cache
def words(kind: Kind, part: Part = "all") -> tuple[str, ...]:
    """The words of one kind, sorted: plain lower-case ones, so that a key has one hyphen.

    wonderwords' own list of profanities is left out. `part` keeps the words that training may
    see, or those it never sees.
    """
    profane = set(_listed("profanity"))
    plain = {word for word in _listed(kind) if _PLAIN_WORD.fullmatch(word)} - profane
    if part != "all":
        plain = {word for word in plain if is_held_out(word) == (part == "held_out")}
    return tuple(sorted(plain))


@cache
def all_words() -> tuple[str, ...]:
    """RULER's words: every different one of wonderwords' nouns, adjectives and verbs, sorted."""
    return tuple(sorted({word for kind in get_args(Kind) for word in _listed(kind)}))


def draw_keys(random: Random, count: int, part: Part = "all") -> list[str]:
    """`count` different keys, each an adjective and a noun joined by a hyphen."""
    adjectives, nouns = words("adjective", part), words("noun", part)
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[f"{random.choice(adjectives)}-{random.choice(nouns)}"] = None
    return list(keys)
