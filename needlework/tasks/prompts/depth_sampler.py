"""Spread needle depths evenly over samples, independent of the number of samples.

Latin hypercube sampling: in each block of as many samples as there are depths, every needle is at
every depth once, and no two needles of a sample share a depth.
"""

import math
from random import Random
from typing import Any, Literal

from needlework.tasks.seeds import stream_seed

RULER_DEPTHS = [float(round(100 * i / 39)) for i in range(40)]
"""RULER's depths in percent, used for needles that the configured depths do not place."""
_STRATA = 20


class DepthSampler:
    """Draws the depths of the queried needles of each sample."""

    def __init__(self, depths: list[float] | Literal["uniform"], *seed_parts: Any):
        """`depths` are in percent, or "uniform"; `seed_parts` (JSON values) seed the streams."""
        self._depths, self._seed_parts = depths, seed_parts

    def depths(self, index: int, count: int) -> list[float]:
        """Depths in percent of the `count` queried needles of sample `index`.

        The first needle steps through the depths by the golden ratio, so that even a few samples
        cover them. The other needles are offset from it; offsets change with each block of
        samples. Needles in excess of the number of depths use RULER's depths.
        """
        if self._depths == "uniform":
            return [round(100 * slot, 2) for slot in self.slots(index, count)]
        size = len(self._depths)
        start = Random(stream_seed("depths", *self._seed_parts)).randrange(size)
        place = start + index * _stride(size)
        random = Random(stream_seed("offsets", *self._seed_parts, index // size))
        offsets = [0, *random.sample(range(1, size), min(count, size) - 1)]
        drawn = [float(self._depths[(place + offset) % size]) for offset in offsets]
        if count > size:
            unused = [depth for depth in RULER_DEPTHS if depth not in drawn]
            random = Random(stream_seed("more depths", *self._seed_parts, index))
            drawn += random.sample(unused, count - size)
        return drawn

    def slots(self, index: int, count: int) -> list[float]:
        """`count` numbers in [0, 1) for sample `index`, stratified over blocks of 20 samples."""
        block, place = divmod(index, _STRATA)
        random = Random(stream_seed("strata", *self._seed_parts, block))
        strata = [random.sample(range(_STRATA), _STRATA)[place] for _ in range(count)]
        random = Random(stream_seed("slots", *self._seed_parts, index))
        return [(stratum + random.random()) / _STRATA for stratum in strata]


def _stride(size: int) -> int:
    """The number nearest to size / 1.618 that is coprime to `size`."""
    strides = (n for n in range(1, size + 1) if math.gcd(n, size) == 1)
    return min(strides, key=lambda n: abs(n - size / 1.618034))
