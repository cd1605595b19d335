import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from needlework.attention.density import Density, DensityMeter, LayerDensity

DENSE = 2
"""Layers below are dense."""
FORWARDS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["prefill", "decode"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.booleans(),
    ).map(lambda f: (*f[:2], min(f[2], f[3]) if f[0] >= DENSE else f[3], f[3], f[4])),
    max_size=20,
)


def _counted(forwards) -> DensityMeter:
    meter = DensityMeter()
    for layer, stage, kept, causal, as_tensor in forwards:
        if layer < DENSE:
            meter.add_dense(layer, stage, causal)
        else:
            meter.add(layer, stage, torch.tensor(kept) if as_tensor else kept, causal)
    return meter


@given(FORWARDS)
def test_density_is_kept_pairs_over_causal_pairs(forwards):
    density = _counted(forwards).read()
    layers = {(one.layer, one.stage): one for one in density.layers}
    assert len(layers) == len(density.layers)
    for stage in ("prefill", "decode"):
        for name, first in ((stage, 0), (f"sparse_layers_{stage}", DENSE)):
            kept = sum(f[2] for f in forwards if f[1] == stage and f[0] >= first)
            causal = sum(f[3] for f in forwards if f[1] == stage and f[0] >= first)
            assert getattr(density, name) == (kept / causal if causal else None)
        for layer in range(6):
            kept = sum(f[2] for f in forwards if f[:2] == (layer, stage))
            causal = sum(f[3] for f in forwards if f[:2] == (layer, stage))
            if causal:
                one = layers.pop((layer, stage))
                assert (one.kept, one.pairs, one.density) == (kept, causal, kept / causal)
                assert one.is_sparse == (layer >= DENSE)
    assert not layers


@given(FORWARDS, st.integers(0, 20))
def test_combined_measurements_equal_one_measurement(forwards, cut):
    parts = [_counted(part).read() for part in (forwards[:cut], forwards[cut:])]
    assert Density.of([*parts[0].layers, *parts[1].layers]) == _counted(forwards).read()


def test_layers_are_sorted_with_prefill_first():
    meter = DensityMeter()
    for layer, stage in [(10, "decode"), (2, "decode"), (10, "prefill"), (2, "prefill")]:
        meter.add(layer, stage, 1, 2)
    assert [(one.layer, one.stage) for one in meter.read().layers] == [
        *[(2, "prefill"), (2, "decode"), (10, "prefill"), (10, "decode")],
    ]


def test_added_tensors_are_not_modified():
    kept = torch.tensor(3)
    meter = DensityMeter()
    meter.add(0, "prefill", kept, 4)
    meter.add(0, "prefill", kept, 4)
    assert meter.read() == Density(
        0.75, None, 0.75, None, (LayerDensity(0, "prefill", True, 6, 8),)
    )
    assert kept == 3


def test_kept_pairs_may_be_fractional():
    meter = DensityMeter()
    meter.add(0, "decode", torch.tensor(2.5, dtype=torch.float64), 10)
    meter.add(0, "decode", 3.5, 10)
    assert meter.read().decode == pytest.approx(0.3)


def test_reset_discards_all_counts():
    meter = _counted([(3, "prefill", 3, 6, True), (2, "decode", 1, 2, False)])
    meter.reset()
    assert meter.read() == DensityMeter().read() == Density(None, None)
    meter.add_dense(1, "prefill", 4)
    assert meter.read() == Density(1, None, None, None, (LayerDensity(1, "prefill", False, 4, 4),))
