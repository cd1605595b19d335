"""Hide needles in as much of a haystack as fits."""

from itertools import accumulate
from typing import NamedTuple

from needlework.tasks.haystacks.answers import occurrences
from needlework.tasks.haystacks.haystack import Haystack, HaystackSample
from needlework.tasks.haystacks.sentence_ends import join_sentences, needs_no_blank
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter


class NeedlePlacement(NamedTuple):
    """A needle's line or sentence, and the depth to hide it at."""

    text: str
    key: str
    value: str
    depth_percent: float


class NeedlePrompt:
    """A prompt builder: intro, needles in a haystack, question."""

    def __init__(
        self,
        counter: TokenCounter,
        haystack: Haystack,
        haystack_sample: HaystackSample,
        needles: list[NeedlePlacement],
        *,
        intro: str,
        question: str,
        answer_prefix: str,
        outputs: tuple[str, ...],
    ):
        """The prompt lists `needles` in the given order: queried ones first, as in `outputs`."""
        self._counter, self._haystack_sample = counter, haystack_sample
        self._joiner = haystack.joiner
        self._needles, self._outputs = needles, outputs
        self._intro, self._question, self._prefix = f"{intro}\n", question, answer_prefix
        self._head = counter.count_head(self._intro)
        self._tail = counter.count_tail(question, answer_prefix)
        with_joiner = "{}\n" if self._joiner == "\n" else " {}"
        self._tokens = counter.count_batch(with_joiner.format(needle.text) for needle in needles)
        self._space_costs = [0] * len(needles)
        if self._joiner == " ":
            self._space_costs = [counter.space_cost(needle.text) for needle in needles]
            if any(needs_no_blank(needle.text) for needle in needles):
                counter.additive = False
        # In haystack order; needles at one depth keep the given order.
        self._order = sorted(range(len(needles)), key=lambda i: needles[i].depth_percent)

    def build(self, max_tokens: int) -> Prompt:
        room = max_tokens - self._head - self._tail - sum(self._tokens)
        while True:
            prompt = self._prompt(*self._haystack_sample.take(room))
            excess = prompt.tokens - max_tokens
            if excess <= 0 or room <= 0:
                return prompt
            room -= excess

    def answers_elsewhere(self, prompt: Prompt) -> dict[str, int]:
        """How often each answer occurs in the context outside the needles, ignoring case."""
        own = [needle.text for needle in self._needles]
        return occurrences(self._outputs, prompt.context, own)

    def _prompt(self, units: list[str], counts: list[int]) -> Prompt:
        merged: list[str] = []
        tokens: list[int] = []
        indices, start = {}, 0
        for i in self._order:
            stop = round(self._needles[i].depth_percent / 100 * len(units))
            merged += units[start:stop]
            tokens += counts[start:stop]
            start = stop
            indices[i] = len(merged)
            merged.append(self._needles[i].text)
            tokens.append(self._tokens[i])
        merged += units[start:]
        tokens += counts[start:]
        first = last = 0
        if self._joiner == " ":
            first = self._counter.line_start_cost(merged[0])
            last = self._counter.line_end_cost(merged[-1])
            text, characters = join_sentences(merged)
        else:
            text = self._joiner.join(merged)
            characters = [0, *accumulate(len(unit) + 1 for unit in merged)]
        tokens_before = [0, *accumulate(tokens)]

        def placed(i: int) -> Needle:
            needle, index = self._needles[i], indices[i]
            offset = first + self._space_costs[i] if index else 0
            return Needle(
                needle.key,
                needle.value,
                needle.depth_percent,
                character=len(self._intro) + characters[index],
                token=self._head + tokens_before[index] + offset,
            )

        return Prompt(
            f"{self._intro}{text}\n",
            self._question,
            self._prefix,
            self._outputs,
            tuple(placed(i) for i in range(len(self._needles))),
            self._head + tokens_before[-1] + first + last + self._tail,
        )
