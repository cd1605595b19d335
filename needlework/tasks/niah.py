"""Needles in a haystack, as RULER makes them (Hsieh et al., 2024): one value asked for."""

from collections.abc import Callable
from random import Random

import numpy as np
from tokenizers import Tokenizer

from needlework.config.tasks import Niah
from needlework.tasks.filler import PARAGRAPH
from needlework.tasks.haystacks import Haystack, Noise, Sentences, WordTokens
from needlework.tasks.prompts import Needle, Prompt
from needlework.tasks.words import draw_keys

INTRO = (
    "A special magic number is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the number afterwards."
)
NOISE = PARAGRAPH
NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = "What is the special magic number for {key} mentioned in the provided text?"
ANSWER_PREFIX = " The special magic number for {key} mentioned in the provided text is"

DIGITS = 7
DEPTHS = [float(depth) for depth in np.linspace(0, 100, 40).round()]
"""The depths in percent that RULER draws from, here for the needles not asked for."""


class Draft:
    """A niah prompt with any number of units of its haystack."""

    def __init__(self, haystack: Haystack, needles: list[tuple[str, str, float]]):
        """`needles` are key, value and depth in percent; the first is asked for."""
        self._haystack, self._needles = haystack, needles
        self.least = haystack.least
        self.move = haystack.move

    def build(self, units: int) -> Prompt:
        haystack, pieces = self._haystack, self._haystack.pieces(units)
        context, placed, start = f"{INTRO}\n", {}, 0
        for key, value, depth_percent in sorted(self._needles, key=lambda needle: needle[2]):
            stop = round(depth_percent / 100 * pieces)
            if stop > start:
                context += haystack.text(units, start, stop) + haystack.joiner
                start = stop
            placed[key] = Needle(key, value, depth_percent, position=len(context))
            context += NEEDLE.format(key=key, value=value) + haystack.joiner
        context += haystack.text(units, start, pieces)
        context = f"{context.removesuffix(haystack.joiner)}\n"
        asked = self._needles[0][0]
        return Prompt(
            context,
            QUESTION.format(key=asked),
            ANSWER_PREFIX.format(key=asked),
            tuple(placed[key] for key, _, _ in self._needles),
        )


def drafts(task: Niah, tokenizer: Tokenizer) -> Callable[[Random, float], Draft]:
    """What makes a draft from a sample's random stream and the depth in percent asked for.

    Keys differ within a sample, and so do values and the depths of the needles not asked for.
    """
    noise, words = Noise(tokenizer), WordTokens(tokenizer)

    def draft(random: Random, depth_percent: float) -> Draft:
        keys = draw_keys(random, task.keys, task.key_words)
        values = map(str, random.sample(range(10 ** (DIGITS - 1), 10**DIGITS), task.keys))
        others = [depth for depth in DEPTHS if depth != depth_percent]
        depths = [depth_percent, *random.sample(others, task.keys - 1)]
        haystack = noise if task.haystack == "noise" else Sentences(words, random)
        return Draft(haystack, list(zip(keys, values, depths, strict=True)))

    return draft
