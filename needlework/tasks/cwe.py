"""RULER's common words extraction (Hsieh et al., 2024): count words in a numbered list."""

from collections.abc import Callable, Sequence

import numpy as np

from needlework.config.tasks.words import CommonWords, CommonWordsTemplates
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.haystacks.shuffling import shuffled
from needlework.tasks.haystacks.words import all_words
from needlework.tasks.prompts.budget import ContentExhausted
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter

ENGLISH = CommonWordsTemplates(
    intro="Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often.",
    question="Question: What are the {count} most common words in the above list?",
    answer_prefix="Answer: The top {count} words that appear most often in the list are:",
)
_SHORT_LENGTH = 4096
_REPEATS, _SHORT_REPEATS = (30, 3), (6, 1)
"""How often a common word and any other word appear."""
_EXAMPLE, _SHORT_EXAMPLE = (30, 10, 3), (10, 3, 1)
"""Worked example: number of other words, then how often a common and any other word appear."""
_MIN_FILL = 0.99
"""Part of the budget that a prompt with all words must fill.

The longest lists differ a little in length, and one length must serve all samples.
"""


class _ListItems:
    """Words and item numbers with their tokens, shared by all samples."""

    def __init__(self, counter: TokenCounter, max_items: int):
        self.words = all_words()
        self.tokens = counter.count_words(self.words)
        self.characters = np.array([len(word) for word in self.words])
        numbers = [f"{number}." for number in range(1, max_items + 1)]
        self.spaced_numbers = [f" {number} " for number in numbers]
        self.spaced_numbers[0] = self.spaced_numbers[0].lstrip()
        number_tokens = np.array(counter.count_batch(f" {number}" for number in numbers))
        number_tokens[0] += counter.line_start_cost("1.")
        self.number_token_ends = number_tokens.cumsum()
        self.number_character_ends = np.array(list(map(len, self.spaced_numbers))).cumsum()
        self.line_end = counter.line_end_cost("word")


class WordListPrompt:
    """A prompt builder: a worked example, and a list of as many words as fit."""

    def __init__(
        self,
        counter: TokenCounter,
        items: _ListItems,
        sample: SampleContext,
        *,
        common_words: int,
        repeats: tuple[int, int],
        example: tuple[int, int, int],
        templates: CommonWordsTemplates,
    ):
        """`common_words` are the answer; `repeats` says how often they and other words appear."""
        self._counter, self._items = counter, items
        self._common, (self._common_repeats, self._other_repeats) = common_words, repeats
        self._slots = sample.depth_sampler.slots(sample.index, common_words)
        random = sample.random
        numbers = np.random.Generator(np.random.PCG64(random.getrandbits(64)))
        self._words = numbers.random(len(items.words)).argsort(kind="stable")
        self._seed = random.getrandbits(64)
        self._instruction = templates.intro.format()
        self._question = templates.question.format(count=common_words)
        self._prefix = blank_after(self._question) + templates.answer_prefix.format(
            count=common_words
        )
        worked_example = self._worked_example(*example, random.getrandbits(64))
        self._intro = f"{worked_example}{self._instruction}\n"
        self._head = counter.count_head(self._intro)
        self._tail = counter.count_tail(self._question, self._prefix)

    def build(self, max_tokens: int) -> Prompt:
        items, repeats = self._items, self._other_repeats
        common_items = self._common * self._common_repeats
        others = self._words[self._common :]
        max_others = (len(items.spaced_numbers) - common_items) // repeats
        number_tokens = items.number_token_ends[common_items + repeats - 1 :: repeats]
        number_tokens = number_tokens[: len(others)]
        fixed = self._head + items.line_end + self._tail
        fixed += self._common_repeats * int(items.tokens[self._words[: self._common]].sum())
        word_tokens = repeats * items.tokens[others[: len(number_tokens)]].cumsum()
        totals = fixed + number_tokens + word_tokens
        count = max(1, int(totals.searchsorted(max_tokens, side="right")))
        prompt = self._prompt(count)
        while prompt.tokens > max_tokens and count > 1:
            count -= 1
            prompt = self._prompt(count)
        if count == len(others) <= max_others and prompt.tokens < _MIN_FILL * max_tokens:
            raise ContentExhausted(prompt.tokens)
        return prompt

    def _prompt(self, others: int) -> Prompt:
        """The prompt with `others` words besides the common ones."""
        items, counter = self._items, self._counter
        repeats = np.repeat([self._common_repeats, self._other_repeats], [self._common, others])
        drawn, places = shuffled(repeats, self._seed, enumerate(self._slots))
        drawn = self._words[drawn]
        words = [items.words[i] for i in drawn.tolist()]
        parts = [""] * (2 * len(words))
        parts[::2], parts[1::2] = items.spaced_numbers[: len(words)], words
        character_ends = items.characters[drawn].cumsum()
        token_ends = items.tokens[drawn].cumsum()

        def needle(j: int) -> Needle:
            place = places[j]
            word = words[place]
            character = items.number_character_ends[place] + character_ends[place] - len(word)
            token = items.number_token_ends[place] + token_ends[place] - items.tokens[drawn[place]]
            return Needle(
                word,
                word,
                round(100 * self._slots[j], 2),
                character=len(self._intro) + int(character),
                token=self._head + int(token) + counter.space_cost(word),
            )

        needles = tuple(needle(j) for j in range(self._common))
        list_tokens = int(items.number_token_ends[len(words) - 1] + token_ends[-1])
        return Prompt(
            f"{self._intro}{''.join(parts)}\n",
            self._question,
            self._prefix,
            tuple(needle.key for needle in needles),
            needles,
            self._head + list_tokens + counter.line_end_cost(words[-1]) + self._tail,
        )

    def _worked_example(
        self, others: int, common_repeats: int, other_repeats: int, seed: int
    ) -> str:
        """A worked example with its answer, made of the words that the list uses last."""
        words = [self._items.words[i] for i in self._words[-(self._common + others) :].tolist()]
        repeats = np.repeat([common_repeats, other_repeats], [self._common, others])
        drawn = [words[i] for i in shuffled(repeats, seed)[0].tolist()]
        answer = _numbered(words[: self._common])
        # RULER has no space before the answer.
        return f"{self._instruction}\n{_numbered(drawn)}\n{self._question}{self._prefix}{answer}\n"


def prepare(
    task: CommonWords, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], WordListPrompt]:
    """Return a function that makes a sample's prompt builder."""
    short = task_context.length < _SHORT_LENGTH
    common_repeats, other_repeats = _SHORT_REPEATS if short else _REPEATS
    common_repeats = task.common_repeats or common_repeats
    other_repeats = task.other_repeats or other_repeats
    common_items = task.common_words * common_repeats
    fewest = common_items + other_repeats
    most = common_items + other_repeats * (len(all_words()) - task.common_words)
    # Every item has at least one token, so the length bounds the number of items.
    items = _ListItems(counter, max(fewest, min(most, task_context.length)))

    def prompt_builder(sample: SampleContext) -> WordListPrompt:
        return WordListPrompt(
            counter,
            items,
            sample,
            common_words=task.common_words,
            repeats=(common_repeats, other_repeats),
            example=_SHORT_EXAMPLE if short else _EXAMPLE,
            templates=task.templates or ENGLISH,
        )

    return prompt_builder


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
