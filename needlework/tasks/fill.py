"""Fill a prompt to its length in tokens: arithmetic first, then one real tokenization."""

from collections.abc import Callable
from itertools import count
from typing import Protocol

from tokenizers import Encoding, Tokenizer

from needlework.tasks.prompts import Prompt


class Draft(Protocol):
    """A prompt whose haystack can have any number of units."""

    least: int
    """Fewest units that make a haystack."""

    def build(self, units: int) -> Prompt:
        """The prompt with `units` units of haystack."""

    def move(self, units: int, gap: int) -> tuple[int, int]:
        """Units that use at most `gap` tokens more than `units` do, and what is left of `gap`."""


class TooLong(Exception):
    """Even the least prompt has more tokens than there are."""


def fill(
    draft: Draft, tokenizer: Tokenizer, budget_tokens: int, answer: str = ""
) -> tuple[Prompt, Encoding]:
    """The longest prompt that, with `answer` behind it, has at most `budget_tokens` tokens.

    Also gives the encoding of the two. Special tokens that the tokenizer adds are counted. Where
    counts of pieces do not add up (merges across pieces), real tokenizations correct the units.

    Raises:
        TooLong: the least prompt is over the budget.
    """
    units, expected, best, low, high = draft.least, None, None, None, None
    while True:
        prompt = draft.build(units)
        encoding = tokenizer.encode(prompt.text + answer)
        gap = budget_tokens - len(encoding)
        if gap >= 0:
            low, best = units, (prompt, encoding)
        elif best is None:
            raise TooLong
        else:
            high = units
        additive = gap == expected
        proposal, expected = draft.move(units, gap)
        if gap == 0 or (proposal == units and additive):
            return best
        proposal = max(proposal, low + 1)
        if high is not None:
            proposal = min(proposal, high - 1)
        if proposal <= low:
            return best
        units = proposal


def least_tokens(draft: Draft, tokenizer: Tokenizer, answer: str = "") -> int:
    """Tokens of the least prompt with `answer` behind it, special tokens counted."""
    return len(tokenizer.encode(draft.build(draft.least).text + answer))


def smallest_length(too_small: int, fits: Callable[[int], bool]) -> int:
    """The first length in tokens after `too_small` at which every least prompt fits."""
    return next(length for length in count(too_small + 1) if fits(length))
