"""Repeated filler text that can be cut after any token."""

from needlework.tasks.haystacks.sentence_ends import blank_after, sentence_ends
from needlework.tasks.prompts.token_counter import TokenCounter

PARAGRAPH = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
"""The filler of passkey and RULER's noise."""


class Filler:
    """One paragraph, repeated on a single line or as one line per repeat.

    Every possible cut of the paragraph is tokenized once with the line break after it, so counts
    are exact wherever the text is cut. The tokens of a line include its line break.
    """

    def __init__(self, counter: TokenCounter, paragraph: str = PARAGRAPH):
        self.paragraph, self._blank = paragraph, blank_after(paragraph)
        encoding = counter.tokenizer.encode(f"\n{paragraph}", add_special_tokens=False)
        token_ends = {end - 1 for _, end in encoding.offsets if end > 1} | {len(paragraph)}
        ends = [end for end in sorted(token_ends) if not paragraph[end - 1].isspace()]
        cuts = [f"{paragraph[:end]}\n" for end in ends]
        tokens = counter.count_batch([*cuts, *(f"{paragraph}{self._blank}{text}" for text in cuts)])
        first, second = tokens[: len(cuts)], tokens[len(cuts) :]
        self._line, self._repeat = first[-1], max(1, second[-1] - first[-1])
        self.min_tokens = self._line
        """Tokens of a line with one whole paragraph."""
        # Tokens of a cut, by its end: as the line's first paragraph, or after another one.
        self._first_cuts = {0: 0} | dict(zip(ends, first, strict=True))
        self._later_cuts = {0: 0} | {e: c - self._line for e, c in zip(ends, second, strict=True)}
        self._sentence_ends = [
            0,
            *(end for end in sentence_ends(paragraph) if end in self._first_cuts),
        ]

    def line_within(self, max_tokens: int) -> tuple[str, int]:
        """The longest single line of at most `max_tokens` tokens, and its token count.

        ("", 0) if not even one token fits.
        """
        paragraphs = max(0, (max_tokens - self._line) // self._repeat + 1)
        left = max_tokens - self._tokens(paragraphs, 0)
        cuts = self._later_cuts if paragraphs else self._first_cuts
        return self._text(paragraphs, _longest_cut(cuts, left))

    def sentences_near(self, target_tokens: float, max_tokens: int) -> tuple[str, int]:
        """The line of whole sentences nearest to `target_tokens`, at most `max_tokens` long.

        The distance ignores the line break, so that the empty line has length 0.
        """

        def distance(cut: tuple[int, int]) -> float:
            return abs(max(0, self._tokens(*cut) - 1) - target_tokens)

        near = int(min(target_tokens, max_tokens) // self._repeat)
        cuts = [
            (paragraphs, end)
            for paragraphs in range(max(0, near - 1), near + 2)
            for end in self._sentence_ends
            if self._tokens(paragraphs, end) <= max_tokens
        ]
        return self._text(*min(cuts, key=distance))

    def lines_within(self, max_tokens: int) -> tuple[list[str], list[int]]:
        """One paragraph per line, the last one cut to fit, and each line's token count.

        At least one whole paragraph.
        """
        paragraphs, left = divmod(max(max_tokens, self._line), self._line)
        texts, counts = [self.paragraph] * paragraphs, [self._line] * paragraphs
        if end := _longest_cut(self._first_cuts, left):
            texts.append(self.paragraph[:end])
            counts.append(self._first_cuts[end])
        return texts, counts

    def _tokens(self, paragraphs: int, end: int) -> int:
        if paragraphs == 0:
            return self._first_cuts[end]
        return self._line + (paragraphs - 1) * self._repeat + self._later_cuts[end]

    def _text(self, paragraphs: int, end: int) -> tuple[str, int]:
        parts = [self.paragraph] * paragraphs + [self.paragraph[:end]] * (end > 0)
        return self._blank.join(parts) + "\n" * bool(parts), self._tokens(paragraphs, end)


def _longest_cut(cuts: dict[int, int], max_tokens: int) -> int:
    """The cut that uses the most of `max_tokens` tokens."""
    return max((end for end in cuts if cuts[end] <= max_tokens), key=lambda end: (cuts[end], end))
