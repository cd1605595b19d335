"""Even spread of depths and slots over the samples, the same for any number of them.

Latin hypercube sampling: in every block of as many samples as there are depths, each needle
stands at each depth once, and no two needles of a sample at the same one.
"""

import math
from random import Random
from typing import Any, Literal

from needlework.tasks.seeds import stream_seed

RULER_DEPTHS = [float(round(100 * i / 39)) for i in range(40)]
"""The depths in percent that RULER draws from: here for needles that find no other place."""
_STRATA = 20


class Spread:
    """Where the needles asked for stand, sample by sample."""

    def __init__(self, depths: list[float] | Literal["uniform"], *stream: Any):
        """`stream` tells the random stream: any JSON values."""
        self._depths, self._stream = depths, stream

    def depths(self, index: int, count: int) -> list[float]:
        """Depths in percent of the `count` needles asked for in sample `index`.

        The first goes round the list of depths in strides of the golden section, so that few
        samples are spread too; the others are ahead of it by offsets that change from block to
        block. Needles beyond the list's depths stand at RULER's.
        """
        if self._depths == "uniform":
            return [round(100 * slot, 2) for slot in self.slots(index, count)]
        size = len(self._depths)
        start = Random(stream_seed("depths", *self._stream)).randrange(size)
        place = start + index * _stride(size)
        random = Random(stream_seed("offsets", *self._stream, index // size))
        offsets = [0, *random.sample(range(1, size), min(count, size) - 1)]
        found = [float(self._depths[(place + offset) % size]) for offset in offsets]
        if count > size:
            others = [depth for depth in RULER_DEPTHS if depth not in found]
            random = Random(stream_seed("more depths", *self._stream, index))
            found += random.sample(others, count - size)
        return found

    def slots(self, index: int, count: int) -> list[float]:
        """`count` numbers in [0, 1) for sample `index`: every twenty samples, each in a twentieth
        of its own.
        """
        block, place = divmod(index, _STRATA)
        random = Random(stream_seed("strata", *self._stream, block))
        strata = [random.sample(range(_STRATA), _STRATA)[place] for _ in range(count)]
        random = Random(stream_seed("slots", *self._stream, index))
        return [(stratum + random.random()) / _STRATA for stratum in strata]


def _stride(size: int) -> int:
    """The number next to size / 1.618 that has no divisor in common with `size`."""
    strides = (n for n in range(1, size + 1) if math.gcd(n, size) == 1)
    return min(strides, key=lambda n: abs(n - size / 1.618034))
