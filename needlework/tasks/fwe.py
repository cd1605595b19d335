"""Frequent words extraction, as RULER makes it (Hsieh et al., 2024): coded words by Zipf's law."""

from bisect import bisect_right
from collections.abc import Callable
from random import Random
from string import ascii_lowercase

import numpy as np
from scipy.special import zeta

from needlework.config.tasks import FrequentWords
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.shuffling import shuffled
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import Counter

INTRO = (
    "Read the following coded text and track the frequency of each coded word."
    " Find the three most frequently appeared coded words."
)
QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'."
    " What are the three most frequently appeared words in the above coded text?"
)
ANSWER_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
DOTS = "..."
"""The most frequent word, which is none."""
_ASKED = (1, 2, 3)
_TOKENS_A_VOCABULARY_WORD = 50


class Zipf:
    """How often each rank stands in a text of n words: floor(n k^-alpha / zeta(alpha))."""

    def __init__(self, alpha: float):
        self._alpha, self._sum = alpha, float(zeta(alpha))
        # Where shares times n differ by one, counts differ; the gaps shrink as ranks go up.
        self.least = int(self._sum / (4**-alpha - 5**-alpha)) + 1
        """The n from which on ranks 2 to 5 have counts that all differ."""

    def counts(self, n: int, ranks: int) -> np.ndarray:
        """Of the ranks from 1 on. int64."""
        weights = np.arange(1, ranks + 1, dtype=float) ** -self._alpha
        return (n * weights / self._sum).astype(np.int64)

    def most(self, words: int) -> int:
        """An n at which rank 1 alone stands more than `words` times."""
        return int((words + 2) * self._sum)

    def ranks(self, n: int) -> int:
        """As many ranks as stand there once, or one more."""
        return int((n / self._sum) ** (1 / self._alpha)) + 1


class _Frame:
    """What stands around the coded text, with its tokens: what all samples share."""

    def __init__(self, counter: Counter):
        self.head, self.tail = counter.head(INTRO), counter.tail(QUESTION, ANSWER_PREFIX)
        self.dots = counter(f" {DOTS}")
        self.line_end = counter.line_end("coded")


class Draft:
    """As much coded text as fits, in words of its own. A fill.Draft."""

    def __init__(
        self,
        counter: Counter,
        frame: _Frame,
        zipf: Zipf,
        turn: SampleContext,
        *,
        letters: int,
        most: int,
    ):
        """`most` different words at most, of so many letters each."""
        self._counter, self._frame, self._zipf, self._letters = counter, frame, zipf, letters
        self._most = most
        self._slots = turn.spread.slots(turn.index, len(_ASKED))
        self._random = Random(turn.random.getrandbits(64))
        self._seed = turn.random.getrandbits(64)
        self._words, self._tokens = {DOTS: None}, [frame.dots]

    def build(self, tokens: int) -> Prompt:
        zipf, frame = self._zipf, self._frame
        most = max(zipf.least, zipf.most(tokens))
        ranks = min(self._most, zipf.ranks(most))
        words, costs = self._drawn(ranks)
        room = tokens - frame.head - frame.line_end - frame.tail

        def used(n: int) -> int:
            return int(zipf.counts(n, ranks) @ costs)

        tried = range(zipf.least, most + 1)
        n = tried[max(0, bisect_right(tried, room, key=used) - 1)]
        prompt = self._prompt(n, words, costs)
        while prompt.tokens > tokens and n > zipf.least:
            n -= 1
            prompt = self._prompt(n, words, costs)
        return prompt

    def _drawn(self, ranks: int) -> tuple[list[str], np.ndarray]:
        """The words of the first ranks, and their tokens: the same however many are asked for."""
        while len(self._words) < ranks:
            self._words["".join(self._random.choices(ascii_lowercase, k=self._letters))] = None
        words = list(self._words)[:ranks]
        new = words[len(self._tokens) :]
        self._tokens += self._counter.many(f" {word}" for word in new)
        return words, np.array(self._tokens[:ranks])

    def _prompt(self, n: int, words: list[str], costs: np.ndarray) -> Prompt:
        frame, counts = self._frame, self._zipf.counts(n, len(words))
        items, places = shuffled(counts, self._seed, zip(_ASKED, self._slots, strict=True))
        text = [words[i] for i in items.tolist()]
        characters = np.array([len(word) + 1 for word in words])

        def needle(j: int) -> Needle:
            before, word = items[: places[j]], words[_ASKED[j]]
            return Needle(
                word,
                word,
                round(100 * self._slots[j], 2),
                character=len(INTRO) + 1 + int(characters[before].sum()),
                token=frame.head + int(costs[before].sum()) + self._counter.space_before(word),
            )

        needles = tuple(needle(j) for j in range(len(_ASKED)))
        return Prompt(
            f"{INTRO} {' '.join(text)}\n",
            QUESTION,
            ANSWER_PREFIX,
            tuple(needle.key for needle in needles),
            needles,
            frame.head + int(counts @ costs) + self._counter.line_end(text[-1]) + frame.tail,
        )


def drafts(
    task: FrequentWords, counter: Counter, setting: Setting
) -> Callable[[SampleContext], Draft]:
    """What makes the draft of a sample.

    Raises:
        ValueError: there are not so many coded words of so few letters.
    """
    there_are = 26**task.letters
    if task.vocabulary is not None and task.vocabulary > there_are:
        raise ValueError(
            f"vocabulary: there are only {there_are} different words of {task.letters} letters;"
            " write fewer, or more letters"
        )
    least = max(_ASKED) + 2
    by_length = min(there_are, max(least, setting.length // _TOKENS_A_VOCABULARY_WORD))
    most = task.vocabulary or by_length
    frame, zipf = _Frame(counter), Zipf(task.alpha)

    def draft(turn: SampleContext) -> Draft:
        return Draft(counter, frame, zipf, turn, letters=task.letters, most=most)

    return draft
