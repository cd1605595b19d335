"""Density as measured: (query, key) pairs attended to, as a share of the causal pairs."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Density:
    """Kept / causal token pairs over the sparse layers, 0-1; None where nothing was measured."""

    prefill: float | None
    decode: float | None


class DensityMeter:
    """Counts pairs by stage; a forward of one token upon a cache is decode, all else prefill."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._kept: dict[str, int | Tensor] = {"prefill": 0, "decode": 0}
        self._causal = {"prefill": 0, "decode": 0}

    def add(self, stage: str, kept: int | Tensor, causal: int) -> None:
        """Count one layer of one forward. `kept` may be a scalar tensor, which is not read yet."""
        self._kept[stage] = self._kept[stage] + kept
        self._causal[stage] += causal

    def read(self) -> Density:
        return Density(
            **{
                stage: int(self._kept[stage]) / causal if causal else None
                for stage, causal in self._causal.items()
            }
        )
