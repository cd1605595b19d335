"""Hide needles in as much of a haystack as fits."""

from itertools import accumulate
from typing import NamedTuple

from needlework.tasks.haystacks.haystack import Haystack, HaystackSample
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import Counter


class NeedlePlacement(NamedTuple):
    """A needle to hide: its line or sentence, and where."""

    text: str
    key: str
    value: str
    depth_percent: float


class NeedlePrompt:
    """A draft: an intro, needles in a haystack, a question. A fill.Draft."""

    def __init__(
        self,
        counter: Counter,
        haystack: Haystack,
        hay: HaystackSample,
        needles: list[NeedlePlacement],
        *,
        intro: str,
        question: str,
        answer_prefix: str,
        outputs: tuple[str, ...],
    ):
        """`needles` are recorded in their order: those asked for first, like `outputs`."""
        self._counter, self._hay, self._joiner = counter, hay, haystack.joiner
        self._needles, self._outputs = needles, outputs
        self._intro, self._question, self._prefix = f"{intro}\n", question, answer_prefix
        self._head = counter.head(self._intro)
        self._tail = counter.tail(question, answer_prefix)
        glued = "{}\n" if self._joiner == "\n" else " {}"
        self._tokens = counter.many(glued.format(needle.text) for needle in needles)
        self._apart = [0] * len(needles)
        if self._joiner == " ":
            self._apart = [counter.space_before(needle.text) for needle in needles]
        # In the order of the haystack; of needles at one depth, in theirs.
        self._order = sorted(range(len(needles)), key=lambda i: needles[i].depth_percent)

    def build(self, tokens: int) -> Prompt:
        room = tokens - self._head - self._tail - sum(self._tokens)
        while True:
            prompt = self._prompt(*self._hay.take(room))
            over = prompt.tokens - tokens
            if over <= 0 or room <= 0:
                return prompt
            room -= over

    def _prompt(self, units: list[str], counts: list[int]) -> Prompt:
        merged, tokens, indices, start = [], [], {}, 0
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
            first = self._counter.first_word(merged[0])
            last = self._counter.line_end(merged[-1])
        characters = [0, *accumulate(len(unit) + 1 for unit in merged)]
        before = [0, *accumulate(tokens)]

        def placed(i: int) -> Needle:
            needle, at = self._needles[i], indices[i]
            return Needle(
                needle.key,
                needle.value,
                needle.depth_percent,
                character=len(self._intro) + characters[at],
                token=self._head + before[at] + (first + self._apart[i] if at else 0),
            )

        return Prompt(
            f"{self._intro}{self._joiner.join(merged)}\n",
            self._question,
            self._prefix,
            self._outputs,
            tuple(placed(i) for i in range(len(self._needles))),
            self._head + before[-1] + first + last + self._tail,
        )
