"""Repeated filler that can be cut after any token."""

import re

from tokenizers import Tokenizer

PARAGRAPH = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
"""The filler of passkey and the noise of RULER."""


class Filler:
    """One paragraph repeated with `joiner` between, measured in tokens of one period of it."""

    def __init__(self, tokenizer: Tokenizer, paragraph: str, joiner: str):
        self.paragraph, self.joiner = paragraph, joiner
        self._period = paragraph + joiner
        # The middle of three periods: neighbours may change how a period is split.
        ends = (
            end - len(self._period)
            for start, end in tokenizer.encode(self._period * 3, add_special_tokens=False).offsets
            if end > start
        )
        self._cuts = [end for end in ends if 0 < end <= len(self._period)]
        self.period_tokens = len(self._cuts)
        self.paragraph_tokens = sum(cut <= len(paragraph) for cut in self._cuts)
        sentence_ends = [match.end() for match in re.finditer(r"\.", paragraph)]
        self._sentences = [sum(cut <= end for cut in self._cuts) for end in sentence_ends]

    def text(self, tokens: int) -> str:
        """The first `tokens` tokens of endless filler, without a joiner at the end."""
        periods, rest = divmod(tokens, self.period_tokens)
        last = self._period[: self._cuts[rest - 1]] if rest else ""
        return (self._period * periods + last).removesuffix(self.joiner)

    def sentence_end(self, tokens: float, most: int) -> int:
        """The token count nearest to `tokens`, and at most `most`, at which a sentence ends."""
        period = int(tokens // self.period_tokens) * self.period_tokens
        ends = [period, *(period + sentence for sentence in self._sentences)]
        return min((end for end in ends if end <= most), key=lambda end: abs(end - tokens))
