import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needlework.attention.blocks import Blocks, attend, choose, kept_blocks, shift
from needlework.attention.masks import LazyMask
from needlework.config.systems import Random

CPU = torch.device("cpu")


def masked(lengths, total, new, right=False, **kwargs):
    """A LazyMask of rows with the given numbers of real tokens, padded on one side."""
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[:length] = right
        row[total - length :] |= not right
    return real, LazyMask(len(lengths), new, total, total - new, attention_mask=real, **kwargs)


@pytest.mark.parametrize(
    ("density", "row", "kept"),
    [(0.25, 0, 1), (0.25, 3, 1), (0.25, 4, 2), (0.1, 29, 3), (0.3, 9, 3), (1.0, 6, 7)],
)
def test_density_counts_blocks_of_each_row(density, row, kept):
    assert kept_blocks(Random(density=density), row) == kept


def test_top_k_is_bounded_by_the_blocks_there_are():
    assert [kept_blocks(Random(top_k_blocks=3), row) for row in range(5)] == [1, 2, 3, 3, 3]


@given(
    starts=st.lists(st.integers(-9, 9), min_size=1, max_size=3),
    n=st.integers(1, 8),
    length=st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_shift_is_a_slice_with_zeros_beyond(starts, n, length):
    x = torch.randn(len(starts), 2, n, 1)
    found = shift(x, starts, length)
    for b, start in enumerate(starts):
        for t in range(length):
            inside = 0 <= start + t < n
            expected = x[b, :, start + t] if inside else torch.zeros(2, 1)
            assert torch.equal(found[b, :, t], expected)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    size=st.integers(1, 6),
    cached=st.integers(0, 12),
    density=st.sampled_from([None, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_choice_keeps_own_block_and_best_before_it_earlier_on_ties(
    lengths, size, cached, density, seed
):
    total = max(lengths)
    system = Random(block_size=size, density=density, top_k_blocks=3)
    _, mask = masked(lengths, total, total - min(cached, total - 1))
    blocks = Blocks(mask, system, CPU)
    torch.manual_seed(seed)
    # Few distinct values, so that ties abound.
    scores = torch.randint(0, 4, (len(lengths), blocks.rows, blocks.count)).float()
    chosen = choose(scores, blocks)
    for b, length in enumerate(lengths):
        begin = max(0, mask.start - (total - length)) // size
        assert blocks.begin[b] == begin
        for row in range(math.ceil(length / size) - begin):
            own = begin + row
            best = sorted(range(own), key=lambda j: (-scores[b, row, j].item(), j))
            expected = [own, *best[: kept_blocks(system, own) - 1]]
            assert [j for j in chosen[b, row].tolist() if j >= 0] == expected


def reference(query, key, value, real, start, chosen, blocks, scaling, softcap=None, sinks=None):
    """Attention of each real token, one at a time, over the tokens of the blocks it may read."""
    out, pairs = torch.zeros(*query.shape[:3], value.shape[-1]), 0
    group = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        first = int(real[b].int().argmax())
        for t in range(query.shape[2]):
            position = start + t
            if not real[b, position]:
                continue
            own = (position - first) // blocks.size
            kept = set(chosen[b, own - blocks.begin[b]].tolist()) - {-1}
            keys = [
                p
                for p in range(first, position + 1)
                if real[b, p] and (p - first) // blocks.size in kept
            ]
            pairs += len(keys)
            for h in range(query.shape[1]):
                logits = key[b, h // group, keys] @ query[b, h, t] * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.exp()
                below = weights.sum() + (0 if sinks is None else sinks[h].exp())
                out[b, h, t] = weights / below @ value[b, h // group, keys]
    return out, pairs


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    size=st.integers(1, 6),
    cached=st.integers(0, 23),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    density=st.sampled_from([0.3, 1.0]),
    right=st.booleans(),
    extra=st.sampled_from(["", "softcap", "sinks"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_attention_over_chosen_blocks(lengths, size, cached, heads, density, right, extra, seed):
    torch.manual_seed(seed)
    total = max(lengths)
    start = min(cached, total - 1)
    real, mask = masked(lengths, total, total - start, right)
    blocks = Blocks(mask, Random(block_size=size, density=density), CPU)
    query = torch.randn(len(lengths), heads[0], total - start, 8)
    key = torch.randn(len(lengths), heads[1], total, 8)
    value = torch.randn(len(lengths), heads[1], total, 4)
    chosen = choose(torch.rand(len(lengths), blocks.rows, blocks.count), blocks)
    terms = {
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": torch.randn(heads[0]) if extra == "sinks" else None,
    }
    out, pairs = attend(query, key, value, chosen, blocks, scaling=0.5, **terms)
    expected, count = reference(query, key, value, real, start, chosen, blocks, 0.5, **terms)
    is_real = real[:, None, start:, None]
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out * is_real, expected, rtol=1e-4, atol=1e-5)
    assert pairs == count
    if density == 1:
        assert count == mask.causal_pairs


def test_other_masks_are_evaluated_on_the_chosen_tokens():
    torch.manual_seed(0)

    def every_third(batch, head, q, k):
        return (k <= q) & ((q - k) % 3 == 0)

    real, mask = masked([20, 13], 20, 20, mask_function=every_third)
    blocks = Blocks(mask, Random(block_size=4, density=1.0), CPU)
    query, key, value = (torch.randn(2, 2, 20, 8) for _ in range(3))
    chosen = choose(torch.rand(2, blocks.rows, blocks.count), blocks)
    out, pairs = attend(query, key, value, chosen, blocks)
    n = torch.arange(20)
    full = every_third(0, 0, n[:, None], n)[None, None] & real[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, full)
    torch.testing.assert_close(out[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1, :, 7:], expected[1, :, 7:], rtol=1e-4, atol=1e-5)
    assert pairs == (full & real[:, None, :, None]).sum()
    torch.testing.assert_close(mask.stock("sdpa"), full)


def test_long_prefill_in_parts_is_the_same(monkeypatch):
    torch.manual_seed(0)
    _, mask = masked([90, 50], 90, 90)
    blocks = Blocks(mask, Random(block_size=4, density=0.4), CPU)
    query, key, value = (torch.randn(2, 2, 90, 8) for _ in range(3))
    chosen = choose(torch.rand(2, blocks.rows, blocks.count), blocks)
    whole, pairs = attend(query, key, value, chosen, blocks)
    monkeypatch.setattr("needlework.attention.blocks.GATHERED", {"cpu": 1})
    parts, pairs_in_parts = attend(query, key, value, chosen, blocks)
    torch.testing.assert_close(parts, whole)
    assert pairs == pairs_in_parts
