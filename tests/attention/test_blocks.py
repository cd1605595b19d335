import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from needlework.attention import blocks as blocks_module
from needlework.attention.blocks import Blocks, causal_pairs, choose, shift
from needlework.attention.kernels.attend import attend
from needlework.attention.masks import LazyMask
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.xattention import XAttention

CPU = torch.device("cpu")


def masked(lengths, total, new, right=False, **kwargs):
    """A LazyMask with `lengths` real tokens per batch row, padded on one side."""
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[:length] = right
        row[total - length :] |= not right
    return real, LazyMask(len(lengths), new, total, total - new, attention_mask=real, **kwargs)


@pytest.mark.parametrize(
    ("density", "row", "kept"),
    [(0.25, 0, 1), (0.25, 3, 1), (0.25, 4, 2), (0.1, 29, 3), (0.3, 9, 3), (1.0, 6, 7)],
)
def test_density_sets_the_block_count_of_each_row(density, row, kept):
    assert Random(density=density).kept_blocks(row) == kept


def test_top_k_is_bounded_by_the_existing_blocks():
    assert [Random(top_k_blocks=3).kept_blocks(row) for row in range(5)] == [1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("system", "other"),
    [
        (Random, {"density": 0.2}),
        (SketchWalk, {"preset": "official"}),
        (XAttention, {"threshold": 0.9}),
    ],
)
def test_a_second_block_count_is_refused(system, other):
    with pytest.raises(ValueError, match=r"top_k_blocks: .* sets the number of blocks; remove"):
        system(top_k_blocks=4, **other)
    written = system(**other)
    assert system.model_validate(written.model_dump(mode="json")) == written


@given(
    starts=st.lists(st.integers(-9, 9), min_size=1, max_size=3),
    n=st.integers(1, 8),
    length=st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_shift_is_a_slice_padded_with_zeros(starts, n, length):
    x = torch.randn(len(starts), 2, n, 1)
    result = shift(x, starts, length)
    for b, start in enumerate(starts):
        for t in range(length):
            inside = 0 <= start + t < n
            expected = x[b, :, start + t] if inside else torch.zeros(2, 1)
            assert torch.equal(result[b, :, t], expected)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    size=st.integers(1, 6),
    cached=st.integers(0, 12),
    density=st.sampled_from([None, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_choice_keeps_the_own_block_and_the_best_earlier_ones(lengths, size, cached, density, seed):
    total = max(lengths)
    count = {"top_k_blocks": 3} if density is None else {"density": density}
    system = Random(block_size=size, **count)
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
            expected = [own, *best[: system.kept_blocks(own) - 1]]
            assert [j for j in chosen[b, row].tolist() if j >= 0] == expected


@pytest.mark.parametrize(
    "system", [Random(block_size=4, top_k_blocks=3), SketchWalk(block_size=4, select="quantile")]
)
def test_heads_choose_independently(system):
    torch.manual_seed(0)
    _, mask = masked([40, 22], 40, 30)
    blocks = Blocks(mask, system, CPU)
    scores = torch.rand(2, 3, blocks.rows, blocks.count)
    if system.marks_blocks:
        # Each head is sure of more blocks than the one before it.
        sure = torch.tensor([0.9, 0.5, 0.1])[:, None, None]
        scores = torch.where(scores > sure, torch.inf, -torch.inf)
    chosen = choose(scores, blocks)
    kept = [
        [set(row) - {-1} for row in choice.flatten(0, 1).tolist()] for choice in chosen.unbind(1)
    ]
    for head, its in enumerate(kept):
        alone = choose(scores[:, head], blocks).flatten(0, 1).tolist()
        assert its == [set(row) - {-1} for row in alone]
    assert kept[0] != kept[1] != kept[2]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    size=st.integers(1, 6),
    cached=st.integers(0, 29),
    density=st.sampled_from([0.2, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_pairs_match_a_count_by_token(lengths, size, cached, density):
    total = max(lengths)
    start = min(cached, total - 1)
    _, mask = masked(lengths, total, total - start)
    blocks = Blocks(mask, Random(block_size=size, density=density), CPU)
    chosen = choose(torch.rand(len(lengths), blocks.rows, blocks.count), blocks)
    pairs = 0
    for b, length in enumerate(lengths):
        first = total - length
        for t in range(max(start, first), total):
            row = (t - first) // size - blocks.begin[b]
            kept = set(chosen[b, row].tolist())
            pairs += sum((k - first) // size in kept for k in range(first, t + 1))
    assert causal_pairs(chosen[:, None], blocks) == pairs
    if density == 1:
        assert pairs == mask.causal_pairs


class LargestIndices(TorchDispatchMode):
    """Bytes of the largest int64 tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int64:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("system", [Random, Seer])
def test_indices_of_many_heads_need_less_memory_than_their_scores(system, monkeypatch):
    _, mask = masked([512, 400], 512, 512)
    others = {"gates": "gates", "threshold": 0.5} if system is Seer else {"density": 0.1}
    torch.manual_seed(0)
    scores, key = torch.randn(2, 16, 128, 128), torch.randn(2, 16, 512, 4)
    if system is Seer:
        scores = torch.where(scores > 1.5, torch.inf, -torch.inf)
    results, largest = [], []
    for at_once in (2**22, 2**15):
        monkeypatch.setattr(blocks_module, "SORTED_AT_ONCE", at_once)
        blocks = Blocks(mask, system(block_size=4, **others), CPU)
        with LargestIndices() as found:
            chosen = choose(scores, blocks)
            out, pairs = attend(key, key, key, chosen, blocks)
        results.append((chosen, out, pairs))
        largest.append(found.nbytes)
    assert all(map(torch.equal, *results))
    assert largest[0] >= 2 * scores.nbytes
    assert largest[1] <= scores.nbytes / 2
