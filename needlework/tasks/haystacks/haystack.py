"""Haystacks: lines or sentences, between which needles go."""

from collections.abc import Callable, Collection
from random import Random
from typing import Protocol

import numpy as np

from needlework.config.tasks import ValueType
from needlework.tasks.context import Setting
from needlework.tasks.haystacks.filler import Filler
from needlework.tasks.haystacks.needle_values import draw
from needlework.tasks.haystacks.sentences import sentence
from needlework.tasks.haystacks.words import Part
from needlework.tasks.prompts.token_counter import CharacterCounter, Counter
from needlework.tasks.seeds import stream_seed

NEEDLE = "One of the special magic {values} for {key} is: {value}."
_SPARE = 1.5
"""Generated units over what the longest sample takes, so that samples differ."""
_LEAST_UNITS = 1000
_MOST_CHANGED = 64


class HaystackSample(Protocol):
    """The haystack of one sample."""

    def take(self, tokens: int) -> tuple[list[str], list[int]]:
        """Units that have at most `tokens` tokens, and the tokens of each, joiner counted."""


class Haystack(Protocol):
    """What the haystacks of samples are made from."""

    joiner: str
    """A line break (one also ends the last unit), or the space between sentences."""
    taken: Collection[str]
    """Keys and values that it holds, which no needle hidden in it may have."""

    def start(self, random: Random) -> HaystackSample:
        """The haystack of one sample."""


class Noise:
    """RULER's noise, a paragraph a line, the last one cut to fit."""

    joiner = "\n"
    taken = ()

    def __init__(self, counter: Counter):
        self._filler = Filler(counter)

    def start(self, random: Random) -> HaystackSample:
        return self

    def take(self, tokens: int) -> tuple[list[str], list[int]]:
        return self._filler.lines(tokens)


class Pool:
    """Units of which each sample takes some, in an order of its own."""

    def __init__(
        self,
        units: list[str],
        counts: np.ndarray,
        joiner: str,
        taken: Collection[str] = (),
        stopgaps: "Pool | None" = None,
    ):
        """`stopgaps` are shorter units for what whole ones leave."""
        self._units, self._counts, self.joiner, self.taken = units, counts, joiner, taken
        self._stopgaps = stopgaps

    def start(self, random: Random) -> HaystackSample:
        numbers = np.random.Generator(np.random.PCG64(random.getrandbits(64)))
        order = numbers.random(len(self._units)).argsort(kind="stable")
        stopgaps = None if self._stopgaps is None else self._stopgaps.start(random)
        return _Taken(self._units, self._counts, order, tighten=True, stopgaps=stopgaps)


class Passage:
    """Sentences of a text in their order; each sample starts at one of its own, round the end."""

    joiner = " "
    taken = ()

    def __init__(self, units: list[str], counts: np.ndarray):
        self._units, self._counts = units, counts

    def start(self, random: Random) -> HaystackSample:
        order = np.roll(np.arange(len(self._units)), -random.randrange(len(self._units)))
        return _Taken(self._units, self._counts, order, tighten=False)


class _Taken:
    """Units in an order, again from the first where they do not suffice."""

    def __init__(
        self,
        units: list[str],
        counts: np.ndarray,
        order: np.ndarray,
        *,
        tighten: bool,
        stopgaps: HaystackSample | None = None,
    ):
        self._units, self._counts, self._order = units, counts, order
        self._tighten, self._stopgaps = tighten, stopgaps
        self._ends = counts[order].cumsum()

    def take(self, tokens: int) -> tuple[list[str], list[int]]:
        rounds, left = divmod(max(tokens, 0), int(self._ends[-1]))
        count = max(int(self._ends.searchsorted(left, side="right")), rounds == 0)
        chosen, spare = self._order[:count], self._order[count:]
        gap = left - int(self._ends[count - 1]) if count else 0
        if self._tighten and gap > 0:
            chosen = _tightened(chosen, spare, self._counts, gap)
        chosen = np.concatenate([*[self._order] * rounds, chosen])
        units = [self._units[i] for i in chosen.tolist()]
        counts = self._counts[chosen].tolist()
        if self._stopgaps is not None:
            more, their = self._stopgaps.take(left := tokens - sum(counts))
            if sum(their) <= left:
                return units + more, counts + their
        return units, counts


def _tightened(chosen: np.ndarray, spare: np.ndarray, counts: np.ndarray, gap: int) -> np.ndarray:
    """`chosen` with some of the last units changed for longer spare ones, to use `gap` tokens."""
    chosen = chosen.copy()
    spare = spare[counts[spare].argsort(kind="stable")]
    lengths = counts[spare]
    for place in range(len(chosen) - 1, max(-1, len(chosen) - 1 - _MOST_CHANGED), -1):
        own = int(counts[chosen[place]])
        best = int(lengths.searchsorted(own + gap, side="right")) - 1
        if best >= 0 and lengths[best] > own:
            gap -= int(lengths[best]) - own
            chosen[place] = spare[best]
            spare, lengths = np.delete(spare, best), np.delete(lengths, best)
    return chosen


def haystack_of(
    name: str,
    counter: Counter,
    setting: Setting,
    *,
    key_type: ValueType = "words",
    value_type: ValueType = "numbers",
    digits: int = 7,
    part: Part = "all",
) -> Haystack:
    """The haystack that a task names; the types are those of the needles in `needle`."""

    def sentences(random: Random, count: int) -> list[str]:
        return [sentence(random) for _ in range(count)]

    def needles(random: Random, count: int) -> list[str]:
        keys = draw(random, key_type, count, digits=digits, part=part, but=taken)
        values = draw(random, value_type, count, digits=digits, part=part, but=taken)
        taken.update(keys, values)
        pairs = zip(keys, values, strict=True)
        return [NEEDLE.format(values=value_type, key=key, value=value) for key, value in pairs]

    taken: set[str] = set()
    if name == "noise":
        return Noise(counter)
    if name == "needle":
        stopgaps = None
        if "uuids" in (key_type, value_type):
            few = setting._replace(length=0)
            stopgaps = haystack_of("needle", counter, few)
            taken.update(stopgaps.taken)
        lines = _units(counter.lines, setting, needles)
        return Pool(*lines, "\n", taken, stopgaps)
    if setting.haystack is not None:
        units = setting.haystack["sentence"].to_list()
        counted = isinstance(counter, CharacterCounter)
        counts = counter.in_order(units) if counted else setting.haystack["tokens"].to_numpy()
        return Passage(units, counts)
    return Pool(*_units(counter.running, setting, sentences), " ")


def _units(
    count: Callable[[list[str]], np.ndarray],
    setting: Setting,
    draw: Callable[[Random, int], list[str]],
) -> tuple[list[str], np.ndarray]:
    """As many units as the setting's length takes, and some to spare, with their tokens."""
    random = Random(stream_seed("haystack", *setting.stream))
    units = draw(random, _LEAST_UNITS)
    counts = count(units)
    more = int(_SPARE * setting.length / counts.mean()) - len(units)
    if more > 0:
        units += (added := draw(random, more))
        counts = np.concatenate([counts, count(added)])
    return units, counts
