"""Density as measured: (query, key) pairs attended to, as a share of the causal pairs."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

STAGES = ("prefill", "decode")


@dataclass(frozen=True)
class LayerDensity:
    """Pairs of one layer in one stage."""

    layer: int
    """Number in the model, from 0."""
    stage: str
    """prefill or decode."""
    kept: float
    """Pairs attended to; a mean where the layer's heads differ."""
    pairs: int
    """Causal pairs, of which there is at least one."""

    @property
    def density(self) -> float:
        """Kept / causal pairs, 0-1."""
        return self.kept / self.pairs


@dataclass(frozen=True)
class Density:
    """Kept / causal token pairs over the sparse layers, 0-1; None where nothing was measured."""

    prefill: float | None
    decode: float | None
    layers: tuple[LayerDensity, ...] = ()
    """What was measured of each layer, by number, prefill before decode."""

    @classmethod
    def of(cls, layers: Iterable[LayerDensity]) -> "Density":
        """Of several measurements, of which some may be of the same layer and stage."""
        kept: dict[tuple[int, str], float] = {}
        pairs: dict[tuple[int, str], int] = {}
        for one in layers:
            key = one.layer, one.stage
            kept[key] = kept.get(key, 0) + one.kept
            pairs[key] = pairs.get(key, 0) + one.pairs
        order = sorted(pairs, key=lambda key: (key[0], STAGES.index(key[1])))
        whole = {}
        for stage in STAGES:
            own = [key for key in order if key[1] == stage]
            causal = sum(pairs[key] for key in own)
            whole[stage] = sum(kept[key] for key in own) / causal if causal else None
        return cls(
            **whole, layers=tuple(LayerDensity(*key, kept[key], pairs[key]) for key in order)
        )


class DensityMeter:
    """Counts pairs by layer and stage; decode is as Forward.is_decode has it."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._kept: dict[tuple[int, str], float | Tensor] = {}
        self._causal: dict[tuple[int, str], int] = {}

    def add(self, layer: int, stage: str, kept: float | Tensor, causal: int) -> None:
        """Count one layer of one forward. `kept` may be a scalar tensor, which is not read yet."""
        key = layer, stage
        self._kept[key] = self._kept[key] + kept if key in self._kept else kept
        self._causal[key] = self._causal.get(key, 0) + causal

    def read(self) -> Density:
        """What was counted since reset(); reads the tensors, so waits for the device."""
        return Density.of(
            LayerDensity(*key, kept.item() if isinstance(kept, Tensor) else kept, causal)
            for key, kept in self._kept.items()
            if (causal := self._causal[key])
        )
