"""Repeated filler that can be cut after any token."""

import re

from needlework.tasks.prompts.token_counter import Counter

PARAGRAPH = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
"""The filler of passkey and the noise of RULER."""


class Filler:
    """One paragraph repeated, with a space between on one line, or on a line each.

    Every cut of it is measured in its place, the line break behind it, so that a line that is cut
    short counts what it counts. Tokens of a line include its line break.
    """

    def __init__(self, counter: Counter, paragraph: str = PARAGRAPH):
        self.paragraph = paragraph
        encoding = counter.tokenizer.encode(f"\n{paragraph}", add_special_tokens=False)
        ends = {end - 1 for _, end in encoding.offsets if end > 1} | {len(paragraph)}
        ends = [end for end in sorted(ends) if not paragraph[end - 1].isspace()]
        cut = [f"{paragraph[:end]}\n" for end in ends]
        costs = counter.many([*cut, *(f"{paragraph} {text}" for text in cut)])
        alone, behind = costs[: len(cut)], costs[len(cut) :]
        self._line, self._more = alone[-1], max(1, behind[-1] - alone[-1])
        self.least_tokens = self._line
        """Of a whole paragraph."""
        self._alone = {0: 0} | dict(zip(ends, alone, strict=True))
        self._behind = {0: 0} | {e: c - self._line for e, c in zip(ends, behind, strict=True)}
        sentences = (match.end() for match in re.finditer(r"[.!?](?=\s|$)", paragraph))
        self._sentences = [0, *(end for end in sentences if end in self._alone)]

    def running(self, tokens: int) -> tuple[str, int]:
        """The longest line of at most `tokens` tokens, and its tokens: ("", 0) where none fits."""
        paragraphs = max(0, (tokens - self._line) // self._more + 1)
        left = tokens - self._tokens(paragraphs, 0)
        return self._text(paragraphs, _longest(self._behind if paragraphs else self._alone, left))

    def running_sentences(self, tokens: float, most: int) -> tuple[str, int]:
        """The line that ends with a sentence, nearest to `tokens` tokens and at most `most`.

        How near is told without the line break, so that no line at all has none.
        """

        def distance(cut: tuple[int, int]) -> float:
            return abs(max(0, self._tokens(*cut) - 1) - tokens)

        near = int(min(tokens, most) // self._more)
        cuts = [
            (paragraphs, end)
            for paragraphs in range(max(0, near - 1), near + 2)
            for end in self._sentences
            if self._tokens(paragraphs, end) <= most
        ]
        return self._text(*min(cuts, key=distance))

    def lines(self, tokens: int) -> tuple[list[str], list[int]]:
        """Paragraphs, the last one cut to fit, and the tokens of each with its line break.

        One whole paragraph at least.
        """
        paragraphs, left = divmod(max(tokens, self._line), self._line)
        texts, counts = [self.paragraph] * paragraphs, [self._line] * paragraphs
        if end := _longest(self._alone, left):
            texts.append(self.paragraph[:end])
            counts.append(self._alone[end])
        return texts, counts

    def _tokens(self, paragraphs: int, end: int) -> int:
        if paragraphs == 0:
            return self._alone[end]
        return self._line + (paragraphs - 1) * self._more + self._behind[end]

    def _text(self, paragraphs: int, end: int) -> tuple[str, int]:
        parts = [self.paragraph] * paragraphs + [self.paragraph[:end]] * (end > 0)
        return " ".join(parts) + "\n" * bool(parts), self._tokens(paragraphs, end)


def _longest(cuts: dict[int, int], tokens: int) -> int:
    """The cut that uses most of `tokens` tokens."""
    return max((end for end in cuts if cuts[end] <= tokens), key=lambda end: (cuts[end], end))
