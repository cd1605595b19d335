"""Measured density: (query, key) pairs attended to, as a share of the causal pairs.

Density of the whole model counts its full-attention layers, sparse and dense ones alike. Layers
with a window or chunks and layers without attention do not count: no system replaces them, and
pairs outside a window are not a system's saving.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from needlework.config.attention.base import Stage

if TYPE_CHECKING:
    # Tables of answers read densities where torch is not loaded.
    from torch import Tensor

STAGES: tuple[Stage, ...] = get_args(Stage)
_Key = tuple[int, Stage, bool]
"""Layer, stage, whether the layer is sparse."""


@dataclass(frozen=True)
class LayerDensity:
    """Pairs of one layer in one stage."""

    layer: int
    """Number in the model, from 0."""
    stage: Stage
    is_sparse: bool
    """False: the layer keeps the model's own attention, so all pairs are kept."""
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
    """Kept / causal token pairs, 0-1; None: no forward of that stage, or no sparse layer."""

    prefill: float | None
    """Of all full-attention layers of the model; dense ones count 1."""
    decode: float | None
    sparse_layers_prefill: float | None = None
    """Of the layers whose attention is replaced."""
    sparse_layers_decode: float | None = None
    layers: tuple[LayerDensity, ...] = ()
    """Sorted by layer, prefill before decode."""

    @classmethod
    def of(cls, layers: Iterable[LayerDensity]) -> "Density":
        """Combine measurements; those of the same layer and stage are added."""
        kept: dict[_Key, float] = {}
        pairs: dict[_Key, int] = {}
        for measured in layers:
            key = measured.layer, measured.stage, measured.is_sparse
            kept[key] = kept.get(key, 0) + measured.kept
            pairs[key] = pairs.get(key, 0) + measured.pairs
        order = sorted(pairs, key=lambda key: (key[0], STAGES.index(key[1])))

        def over_layers(stage: Stage, only_sparse: bool = False) -> float | None:
            keys = [key for key in order if key[1] == stage and key[2] >= only_sparse]
            causal = sum(pairs[key] for key in keys)
            return sum(kept[key] for key in keys) / causal if causal else None

        return cls(
            over_layers("prefill"),
            over_layers("decode"),
            over_layers("prefill", only_sparse=True),
            over_layers("decode", only_sparse=True),
            tuple(LayerDensity(*key, kept[key], pairs[key]) for key in order),
        )


class DensityMeter:
    """Counts pairs by layer and stage; Forward.is_decode separates the stages."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard the counts."""
        self._kept: dict[_Key, float | Tensor] = {}
        self._causal: dict[_Key, int] = {}

    def add(self, layer: int, stage: Stage, kept: "float | Tensor", causal: int) -> None:
        """Count a sparse layer in one forward. A scalar tensor `kept` is not read until read()."""
        self._add((layer, stage, True), kept, causal)

    def add_dense(self, layer: int, stage: Stage, causal: int) -> None:
        """Count one dense layer of one forward: it keeps all pairs."""
        self._add((layer, stage, False), causal, causal)

    def _add(self, key: _Key, kept: "float | Tensor", causal: int) -> None:
        self._kept[key] = self._kept[key] + kept if key in self._kept else kept
        self._causal[key] = self._causal.get(key, 0) + causal

    def read(self) -> Density:
        """Density since reset(). Waits for the device."""
        return Density.of(
            LayerDensity(*key, float(kept), causal)
            for key, kept in self._kept.items()
            if (causal := self._causal[key])
        )
