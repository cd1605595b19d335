"""Haystacks: the lines or sentences that needles are hidden between."""

from collections.abc import Callable, Collection
from dataclasses import replace
from random import Random
from typing import Protocol

import numpy as np

from needlework.config.tasks.base import ValueType
from needlework.tasks.context import TaskContext
from needlework.tasks.haystacks.filler import Filler
from needlework.tasks.haystacks.needle_values import draw_values
from needlework.tasks.haystacks.sentence_ends import needs_no_blank
from needlework.tasks.haystacks.sentences import random_sentence
from needlework.tasks.haystacks.words import WordSource
from needlework.tasks.prompts.token_counter import CharacterCounter, TokenCounter
from needlework.tasks.seeds import stream_seed

NEEDLE = "One of the special magic {values} for {key} is: {value}."
_OVERSUPPLY = 1.5
"""Generated units relative to what the longest sample uses, so that samples differ."""
_MIN_UNITS = 1000
_MAX_SWAPS = 64


class HaystackSample(Protocol):
    """The haystack of one sample."""

    def take(self, max_tokens: int) -> tuple[list[str], list[int]]:
        """Units of at most `max_tokens` tokens, and the tokens of each, joiner included."""


class Haystack(Protocol):
    """The source of the haystacks of all samples."""

    joiner: str
    """A line break, which also ends the last unit, or the space between sentences.

    Sentences of scripts without blanks are joined without the space.
    """
    used_values: Collection[str]
    """Keys and values that the haystack itself contains. Hidden needles must not repeat them."""

    def sample(self, random: Random) -> HaystackSample:
        """The haystack of one sample."""


class Noise:
    """RULER's noise: one paragraph per line, the last one cut to fit."""

    joiner = "\n"
    used_values: Collection[str] = ()

    def __init__(self, counter: TokenCounter):
        self._filler = Filler(counter)

    def sample(self, random: Random) -> HaystackSample:
        return self

    def take(self, max_tokens: int) -> tuple[list[str], list[int]]:
        return self._filler.lines_within(max_tokens)


class ShuffledUnits:
    """Generated lines or sentences; each sample uses some of them in its own order."""

    def __init__(
        self,
        units: list[str],
        counts: np.ndarray,
        joiner: str,
        used_values: Collection[str] = (),
        short_units: "Haystack | None" = None,
    ):
        """`short_units` fill the gap that whole units leave."""
        self._units, self._counts, self.joiner = units, counts, joiner
        self.used_values, self._short_units = used_values, short_units

    def sample(self, random: Random) -> HaystackSample:
        numbers = np.random.Generator(np.random.PCG64(random.getrandbits(64)))
        order = numbers.random(len(self._units)).argsort(kind="stable")
        short_units = None if self._short_units is None else self._short_units.sample(random)
        return _OrderedUnits(
            self._units, self._counts, order, swap_to_fit=True, short_units=short_units
        )


class RunningText:
    """Sentences of a text in order; each sample starts at a random one and wraps around."""

    joiner = " "
    used_values: Collection[str] = ()

    def __init__(self, units: list[str], counts: np.ndarray):
        self._units, self._counts = units, counts

    def sample(self, random: Random) -> HaystackSample:
        order = np.roll(np.arange(len(self._units)), -random.randrange(len(self._units)))
        return _OrderedUnits(self._units, self._counts, order, swap_to_fit=False)


class _OrderedUnits:
    """Units in a fixed order, repeated from the first if they run out."""

    def __init__(
        self,
        units: list[str],
        counts: np.ndarray,
        order: np.ndarray,
        *,
        swap_to_fit: bool,
        short_units: HaystackSample | None = None,
    ):
        self._units, self._counts, self._order = units, counts, order
        self._swap_to_fit, self._short_units = swap_to_fit, short_units
        self._ends = counts[order].cumsum()

    def take(self, max_tokens: int) -> tuple[list[str], list[int]]:
        rounds, left = divmod(max(max_tokens, 0), int(self._ends[-1]))
        count = max(int(self._ends.searchsorted(left, side="right")), rounds == 0)
        chosen, unused = self._order[:count], self._order[count:]
        gap = left - int(self._ends[count - 1]) if count else 0
        if self._swap_to_fit and gap > 0:
            chosen = _swap_in_longer(chosen, unused, self._counts, gap)
        chosen = np.concatenate([*[self._order] * rounds, chosen])
        units = [self._units[i] for i in chosen.tolist()]
        counts = self._counts[chosen].tolist()
        if self._short_units is not None:
            left = max_tokens - sum(counts)
            short_units, short_counts = self._short_units.take(left)
            if sum(short_counts) <= left:
                return units + short_units, counts + short_counts
        return units, counts


def _swap_in_longer(
    chosen: np.ndarray, unused: np.ndarray, counts: np.ndarray, gap: int
) -> np.ndarray:
    """Replace some of the last chosen units by longer unused ones, to fill `gap` tokens."""
    chosen = chosen.copy()
    unused = unused[counts[unused].argsort(kind="stable")]
    lengths = counts[unused]
    for place in range(len(chosen) - 1, max(-1, len(chosen) - 1 - _MAX_SWAPS), -1):
        current = int(counts[chosen[place]])
        best = int(lengths.searchsorted(current + gap, side="right")) - 1
        if best >= 0 and lengths[best] > current:
            gap -= int(lengths[best]) - current
            chosen[place] = unused[best]
            unused, lengths = np.delete(unused, best), np.delete(lengths, best)
    return chosen


def make_haystack(
    name: str,
    counter: TokenCounter,
    task_context: TaskContext,
    *,
    key_type: ValueType = "words",
    value_type: ValueType = "numbers",
    digits: int = 7,
    part: WordSource = "all",
    needle: str = NEEDLE,
) -> Haystack:
    """Create the haystack that a task names.

    The keyword arguments describe the needles that the haystack `needle` consists of.
    """

    def sentences(random: Random, count: int) -> list[str]:
        return [random_sentence(random) for _ in range(count)]

    def needles(random: Random, count: int) -> list[str]:
        keys = draw_values(random, key_type, count, digits=digits, part=part, exclude=used)
        values = draw_values(random, value_type, count, digits=digits, part=part, exclude=used)
        used.update(keys, values)
        pairs = zip(keys, values, strict=True)
        return [needle.format(values=value_type, key=key, value=value) for key, value in pairs]

    used: set[str] = set()
    if name == "noise":
        return Noise(counter)
    if name == "needle":
        short_units = None
        if "uuids" in (key_type, value_type):
            short_units = make_haystack(
                "needle", counter, replace(task_context, length=0), needle=needle
            )
            used.update(short_units.used_values)
        lines, counts = _generate_units(counter.count_lines, task_context, needles)
        return ShuffledUnits(lines, counts, "\n", used, short_units)
    if task_context.haystack is not None:
        units = task_context.haystack["sentence"].to_list()
        if any(map(needs_no_blank, units)):
            counter.additive = False
        if isinstance(counter, CharacterCounter):
            return RunningText(units, counter.count_in_place(units))
        return RunningText(units, task_context.haystack["tokens"].to_numpy())
    units, counts = _generate_units(counter.count_sentences, task_context, sentences)
    return ShuffledUnits(units, counts, " ")


def _generate_units(
    count_tokens: Callable[[list[str]], np.ndarray],
    task_context: TaskContext,
    draw_units: Callable[[Random, int], list[str]],
) -> tuple[list[str], np.ndarray]:
    """Draw more units than the task's length needs, and count the tokens of each."""
    random = Random(stream_seed("haystack", *task_context.seed_parts))
    units = draw_units(random, _MIN_UNITS)
    counts = count_tokens(units)
    missing = int(_OVERSUPPLY * task_context.length / counts.mean()) - len(units)
    if missing > 0:
        added = draw_units(random, missing)
        units += added
        counts = np.concatenate([counts, count_tokens(added)])
    return units, counts
