"""Haystacks of niah: text in whole lines or sentences, between which needles go."""

from random import Random
from typing import Protocol

from tokenizers import Tokenizer

from needlework.tasks.filler import PARAGRAPH, Filler
from needlework.tasks.sentences import sentence


class Haystack(Protocol):
    """Text that is as long as asked, in pieces (lines, sentences) that needles do not split."""

    least: int
    joiner: str

    def pieces(self, units: int) -> int:
        """Lines or sentences in `units` units."""

    def text(self, units: int, start: int, stop: int) -> str:
        """Pieces start..stop of `units` units of haystack."""

    def move(self, units: int, gap: int) -> tuple[int, int]:
        """Units that use at most `gap` tokens more than `units` do, and what is left of `gap`."""


class Noise:
    """RULER's noise, a paragraph a line. A unit is a token: the last line is cut to fit."""

    joiner = "\n"

    def __init__(self, tokenizer: Tokenizer):
        self._filler = Filler(tokenizer, PARAGRAPH, self.joiner)
        self._line_characters = len(PARAGRAPH + self.joiner)
        self.least = self._filler.paragraph_tokens

    def pieces(self, units: int) -> int:
        return -(-units // self._filler.period_tokens)

    def text(self, units: int, start: int, stop: int) -> str:
        whole = self._filler.text(units)
        return whole[start * self._line_characters : stop * self._line_characters].rstrip("\n")

    def move(self, units: int, gap: int) -> tuple[int, int]:
        return units + gap, 0


class WordTokens(dict[str, int]):
    """Tokens of each word with a space before it, counted when first asked for."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> int:
        self[word] = len(self._tokenizer.encode(f" {word}", add_special_tokens=False))
        return self[word]


class Sentences:
    """Wonderwords sentences, drawn as they are needed. A unit is a sentence."""

    joiner = " "
    least = 1

    def __init__(self, words: WordTokens, random: Random):
        self._words, self._random = words, random
        self._sentences: list[str] = []
        self._tokens: list[int] = []

    def pieces(self, units: int) -> int:
        return units

    def text(self, units: int, start: int, stop: int) -> str:
        self._draw(units)
        return " ".join(self._sentences[start:stop])

    def move(self, units: int, gap: int) -> tuple[int, int]:
        while gap < 0:
            units -= 1
            gap += self._tokens[units]
        self._draw(units + 1)
        while self._tokens[units] <= gap:
            gap -= self._tokens[units]
            units += 1
            self._draw(units + 1)
        return units, gap

    def _draw(self, count: int) -> None:
        while len(self._sentences) < count:
            text = sentence(self._random)
            self._sentences.append(text)
            self._tokens.append(sum(self._words[word] for word in text.split(" ")))
