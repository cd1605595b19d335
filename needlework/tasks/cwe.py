"""Common words extraction, as RULER makes it (Hsieh et al., 2024): count words in a list."""

from collections.abc import Callable, Sequence

import numpy as np

from needlework.config.tasks import CommonWords
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.shuffling import shuffled
from needlework.tasks.haystacks.words import all_words
from needlework.tasks.prompts.budget import Exhausted
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import Counter

INTRO = (
    "Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often."
)
QUESTION = "Question: What are the {count} most common words in the above list?"
ANSWER_PREFIX = " Answer: The top {count} words that appear most often in the list are:"
_SHORT_LENGTH = 4096
_REPEATS, _SHORT_REPEATS = (30, 3), (6, 1)
_EXAMPLE, _SHORT_EXAMPLE = (30, 10, 3), (10, 3, 1)
"""Of the worked example: words that are not common, times a common one stands there, another."""
_ENOUGH = 0.99
"""Of the tokens asked for: with all words used, a prompt that has so many is long enough.

The longest lists differ a little in length, so that one length must do for all of them.
"""


class _Items:
    """Words and numbers of the list, with their tokens: what all samples share."""

    def __init__(self, counter: Counter, most: int):
        """`most` is the number of the last item."""
        self.words = all_words()
        self.tokens = counter.words(self.words)
        self.characters = np.array([len(word) for word in self.words])
        numbers = [f"{number}." for number in range(1, most + 1)]
        self.spaced = [f" {number} " for number in numbers]
        self.spaced[0] = self.spaced[0].lstrip()
        self.number_tokens = np.array(counter.many(f" {number}" for number in numbers))
        self.number_tokens[0] += counter.first_word("1.")
        self.number_ends = self.number_tokens.cumsum()
        self.spaced_ends = np.array([len(number) for number in self.spaced]).cumsum()
        self.line_end = counter.line_end("word")


class Draft:
    """A worked example, and a list with as many words as fit. A fill.Draft."""

    def __init__(
        self,
        counter: Counter,
        items: _Items,
        turn: SampleContext,
        *,
        common: int,
        repeats: tuple[int, int],
        example: tuple[int, int, int],
    ):
        """`common` words are asked for; `repeats` are theirs and those of each other word."""
        self._counter, self._items = counter, items
        self._common, (self._often, self._seldom) = common, repeats
        self._slots = turn.spread.slots(turn.index, common)
        random = turn.random
        numbers = np.random.Generator(np.random.PCG64(random.getrandbits(64)))
        self._words = numbers.random(len(items.words)).argsort(kind="stable")
        self._seed = random.getrandbits(64)
        self._question = QUESTION.format(count=common)
        self._prefix = ANSWER_PREFIX.format(count=common)
        self._intro = f"{self._example(*example, random.getrandbits(64))}{INTRO}\n"
        self._head = counter.head(self._intro)
        self._tail = counter.tail(self._question, self._prefix)

    def build(self, tokens: int) -> Prompt:
        items, asked = self._items, self._common * self._often
        others = self._words[self._common :]
        room = (len(items.spaced) - asked) // self._seldom
        ends = items.number_ends[asked + self._seldom - 1 :: self._seldom][: len(others)]
        fixed = self._head + items.line_end + self._tail
        fixed += self._often * int(items.tokens[self._words[: self._common]].sum())
        totals = fixed + ends + self._seldom * items.tokens[others[: len(ends)]].cumsum()
        count = max(1, int(totals.searchsorted(tokens, side="right")))
        prompt = self._prompt(count)
        while prompt.tokens > tokens and count > 1:
            count -= 1
            prompt = self._prompt(count)
        if count == len(others) <= room and prompt.tokens < _ENOUGH * tokens:
            raise Exhausted(prompt.tokens)
        return prompt

    def _prompt(self, others: int) -> Prompt:
        """The prompt with so many words that are not common."""
        items, counter = self._items, self._counter
        repeats = np.repeat([self._often, self._seldom], [self._common, others])
        drawn, places = shuffled(repeats, self._seed, enumerate(self._slots))
        drawn = self._words[drawn]
        words = [items.words[i] for i in drawn.tolist()]
        parts = [""] * (2 * len(words))
        parts[::2], parts[1::2] = items.spaced[: len(words)], words
        ends, tokens = items.characters[drawn].cumsum(), items.tokens[drawn].cumsum()

        def needle(j: int) -> Needle:
            place = places[j]
            word = words[place]
            character = items.spaced_ends[place] + ends[place] - len(word)
            token = items.number_ends[place] + tokens[place] - items.tokens[drawn[place]]
            return Needle(
                word,
                word,
                round(100 * self._slots[j], 2),
                character=len(self._intro) + int(character),
                token=self._head + int(token) + counter.space_before(word),
            )

        needles = tuple(needle(j) for j in range(self._common))
        listed = int(items.number_ends[len(words) - 1] + tokens[-1])
        return Prompt(
            f"{self._intro}{''.join(parts)}\n",
            self._question,
            self._prefix,
            tuple(needle.key for needle in needles),
            needles,
            self._head + listed + counter.line_end(words[-1]) + self._tail,
        )

    def _example(self, others: int, often: int, seldom: int, seed: int) -> str:
        """A worked example and its answer, of the words that the list comes to last."""
        words = [self._items.words[i] for i in self._words[-(self._common + others) :].tolist()]
        repeats = np.repeat([often, seldom], [self._common, others])
        drawn = [words[i] for i in shuffled(repeats, seed)[0].tolist()]
        answer = _numbered(words[: self._common])
        # No space before the answer: so it is published.
        return f"{INTRO}\n{_numbered(drawn)}\n{self._question}{self._prefix}{answer}\n"


def drafts(
    task: CommonWords, counter: Counter, setting: Setting
) -> Callable[[SampleContext], Draft]:
    """What makes the draft of a sample."""
    short = setting.length < _SHORT_LENGTH
    often, seldom = _SHORT_REPEATS if short else _REPEATS
    often, seldom = task.common_repeats or often, task.other_repeats or seldom
    least = task.common_words * often + seldom
    most = task.common_words * often + seldom * (len(all_words()) - task.common_words)
    # No item has less than a token.
    items = _Items(counter, max(least, min(most, setting.length)))

    def draft(turn: SampleContext) -> Draft:
        return Draft(
            counter,
            items,
            turn,
            common=task.common_words,
            repeats=(often, seldom),
            example=_SHORT_EXAMPLE if short else _EXAMPLE,
        )

    return draft


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
