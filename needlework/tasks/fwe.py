"""RULER's frequent words extraction (Hsieh et al., 2024): coded words under Zipf's law."""

from bisect import bisect_right
from collections.abc import Callable
from random import Random
from string import ascii_lowercase

import numpy as np
from scipy.special import zeta

from needlework.config.tasks.words import FrequentWords, FrequentWordsTemplates
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.haystacks.shuffling import shuffled
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter

ENGLISH = FrequentWordsTemplates(
    intro="Read the following coded text and track the frequency of each coded word."
    " Find the three most frequently appeared coded words.",
    question="Question: Do not provide any explanation. Please ignore the dots '....'."
    " What are the three most frequently appeared words in the above coded text?",
    answer_prefix="Answer: According to the coded text above, the three most frequently appeared"
    " words are:",
)
DOTS = "..."
"""The most frequent word, which the question excludes."""
_ANSWER_RANKS = (1, 2, 3)
_TOKENS_PER_VOCABULARY_WORD = 50


class Zipf:
    """Count of each rank in a text of n words: floor(n k^-alpha / zeta(alpha))."""

    def __init__(self, alpha: float):
        self._alpha, self._sum = alpha, float(zeta(alpha))
        # Counts differ where expected counts differ by one; the gaps shrink with the rank.
        self.min_words = int(self._sum / (4**-alpha - 5**-alpha)) + 1
        """The smallest n from which ranks 2 to 5 all have different counts."""

    def counts(self, n: int, ranks: int) -> np.ndarray:
        """Counts of the first `ranks` ranks. int64 [ranks]."""
        weights = np.arange(1, ranks + 1, dtype=float) ** -self._alpha
        return (n * weights / self._sum).astype(np.int64)

    def words_for_top_count(self, count: int) -> int:
        """An n at which rank 1 alone appears more than `count` times."""
        return int((count + 2) * self._sum)

    def distinct(self, n: int) -> int:
        """The number of ranks that appear at least once, or one more."""
        return int((n / self._sum) ** (1 / self._alpha)) + 1


class _FixedParts:
    """Everything around the coded words and its tokens, shared by all samples."""

    def __init__(self, counter: TokenCounter, templates: FrequentWordsTemplates):
        self.intro, self.question = templates.intro.format(), templates.question.format()
        self.answer_prefix = blank_after(self.question) + templates.answer_prefix.format()
        self.head = counter.count_head(self.intro)
        self.tail = counter.count_tail(self.question, self.answer_prefix)
        self.dots = counter(f" {DOTS}")
        self.line_end = counter.line_end_cost("coded")


class CodedTextPrompt:
    """A prompt builder: as much coded text as fits, in words drawn for the sample."""

    def __init__(
        self,
        counter: TokenCounter,
        fixed: _FixedParts,
        zipf: Zipf,
        sample: SampleContext,
        *,
        letters: int,
        max_vocabulary: int,
    ):
        self._counter, self._fixed, self._zipf, self._letters = counter, fixed, zipf, letters
        self._max_vocabulary = max_vocabulary
        self._slots = sample.depth_sampler.slots(sample.index, len(_ANSWER_RANKS))
        self._random = Random(sample.random.getrandbits(64))
        self._seed = sample.random.getrandbits(64)
        self._words: dict[str, None] = {DOTS: None}
        self._tokens = [fixed.dots]

    def build(self, max_tokens: int) -> Prompt:
        zipf, fixed = self._zipf, self._fixed
        longest = max(zipf.min_words, zipf.words_for_top_count(max_tokens))
        ranks = min(self._max_vocabulary, zipf.distinct(longest))
        words, word_tokens = self._vocabulary(ranks)
        room = max_tokens - fixed.head - fixed.line_end - fixed.tail

        def text_tokens(n: int) -> int:
            return int(zipf.counts(n, ranks) @ word_tokens)

        candidates = range(zipf.min_words, longest + 1)
        n = candidates[max(0, bisect_right(candidates, room, key=text_tokens) - 1)]
        prompt = self._prompt(n, words, word_tokens)
        while prompt.tokens > max_tokens and n > zipf.min_words:
            n -= 1
            prompt = self._prompt(n, words, word_tokens)
        return prompt

    def _vocabulary(self, ranks: int) -> tuple[list[str], np.ndarray]:
        """Words of the first ranks and their tokens, independent of how many were drawn before."""
        while len(self._words) < ranks:
            self._words["".join(self._random.choices(ascii_lowercase, k=self._letters))] = None
        words = list(self._words)[:ranks]
        new = words[len(self._tokens) :]
        self._tokens += self._counter.count_batch(f" {word}" for word in new)
        return words, np.array(self._tokens[:ranks])

    def _prompt(self, n: int, words: list[str], word_tokens: np.ndarray) -> Prompt:
        fixed, counts = self._fixed, self._zipf.counts(n, len(words))
        pinned = zip(_ANSWER_RANKS, self._slots, strict=True)
        items, places = shuffled(counts, self._seed, pinned)
        text = [words[i] for i in items.tolist()]
        characters = np.array([len(word) + 1 for word in words])

        def needle(j: int) -> Needle:
            before, word = items[: places[j]], words[_ANSWER_RANKS[j]]
            tokens_before = int(word_tokens[before].sum())
            return Needle(
                word,
                word,
                round(100 * self._slots[j], 2),
                character=len(fixed.intro) + 1 + int(characters[before].sum()),
                token=fixed.head + tokens_before + self._counter.space_cost(word),
            )

        needles = tuple(needle(j) for j in range(len(_ANSWER_RANKS)))
        line_end = self._counter.line_end_cost(text[-1])
        return Prompt(
            f"{fixed.intro} {' '.join(text)}\n",
            fixed.question,
            fixed.answer_prefix,
            tuple(needle.key for needle in needles),
            needles,
            fixed.head + int(counts @ word_tokens) + line_end + fixed.tail,
        )


def prepare(
    task: FrequentWords, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], CodedTextPrompt]:
    """Return a function that makes a sample's prompt builder.

    Raises:
        ValueError: `vocabulary` exceeds the number of words with `letters` letters.
    """
    possible = 26**task.letters
    if task.vocabulary is not None and task.vocabulary > possible:
        raise ValueError(
            f"vocabulary: only {possible} different words have {task.letters} letters;"
            f" write {possible} or less, or more letters"
        )
    smallest = max(_ANSWER_RANKS) + 2
    by_length = max(smallest, task_context.length // _TOKENS_PER_VOCABULARY_WORD)
    max_vocabulary = task.vocabulary or min(possible, by_length)
    fixed, zipf = _FixedParts(counter, task.templates or ENGLISH), Zipf(task.alpha)

    def prompt_builder(sample: SampleContext) -> CodedTextPrompt:
        return CodedTextPrompt(
            counter, fixed, zipf, sample, letters=task.letters, max_vocabulary=max_vocabulary
        )

    return prompt_builder
