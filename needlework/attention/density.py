"""Measured density: (query, key) pairs attended to, as a share of the causal pairs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from needlework.config.attention import Stage

STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class LayerDensity:
    """Pairs of one layer in one stage."""

    layer: int
    """Number in the model, from 0."""
    stage: Stage
    kept: float
    """Pairs attended to, averaged over heads."""
    pairs: int
    """Causal pairs, at least 1."""

    @property
    def density(self) -> float:
        """Kept / causal pairs, 0-1."""
        return self.kept / self.pairs


@dataclass(frozen=True)
class Density:
    """Kept / causal token pairs over the sparse layers, 0-1; None: no forward of that stage."""

    prefill: float | None
    decode: float | None
    layers: tuple[LayerDensity, ...] = ()
    """Sorted by layer, prefill before decode."""

    @classmethod
    def of(cls, layers: Iterable[LayerDensity]) -> "Density":
        """Combine measurements; those of the same layer and stage are added."""
        kept: dict[tuple[int, Stage], float] = {}
        pairs: dict[tuple[int, Stage], int] = {}
        for measured in layers:
            key = measured.layer, measured.stage
            kept[key] = kept.get(key, 0) + measured.kept
            pairs[key] = pairs.get(key, 0) + measured.pairs
        order = sorted(pairs, key=lambda key: (key[0], STAGES.index(key[1])))

        def over_layers(stage: Stage) -> float | None:
            keys = [key for key in order if key[1] == stage]
            causal = sum(pairs[key] for key in keys)
            return sum(kept[key] for key in keys) / causal if causal else None

        by_layer = tuple(LayerDensity(*key, kept[key], pairs[key]) for key in order)
        return cls(over_layers("prefill"), over_layers("decode"), by_layer)


class DensityMeter:
    """Counts pairs by layer and stage; Forward.is_decode separates the stages."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard the counts."""
        self._kept: dict[tuple[int, Stage], float | Tensor] = {}
        self._causal: dict[tuple[int, Stage], int] = {}

    def add(self, layer: int, stage: Stage, kept: float | Tensor, causal: int) -> None:
        """Count one layer of one forward. A scalar tensor `kept` is not read until read()."""
        key = layer, stage
        self._kept[key] = self._kept[key] + kept if key in self._kept else kept
        self._causal[key] = self._causal.get(key, 0) + causal

    def read(self) -> Density:
        """Density since reset(). Waits for the device."""
        return Density.of(
            LayerDensity(*key, kept.item() if isinstance(kept, Tensor) else kept, causal)
            for key, kept in self._kept.items()
            if (causal := self._causal[key])
        )
