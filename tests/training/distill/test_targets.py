import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.target_reference import tile

from needlework.attention.blocks import Blocks
from needlework.attention.kernels.gather import SoftmaxTerms
from needlework.attention.masks import LazyMask
from needlework.config.attention.base import BlockSparse
from needlework.training.distill import targets
from needlework.training.distill.targets import decode_targets, prefill_targets


def blocks_of(lengths, size):
    """Blocks of a left-padded batch whose rows have `lengths` real tokens."""
    total = max(lengths)
    real = torch.stack([torch.arange(total) >= total - length for length in lengths])
    mask = LazyMask(len(lengths), total, total, attention_mask=real)
    return Blocks(mask, BlockSparse(block_size=size), torch.device("cpu"))


SHAPES = st.tuples(
    st.lists(st.integers(1, 14), min_size=1, max_size=3),  # tokens of each row
    st.integers(1, 5),  # block size
    st.sampled_from([(1, 1), (2, 1), (4, 2), (2, 2)]),  # heads, kv heads
    st.sampled_from([None, 2.0]),  # softcap
    st.booleans(),  # sinks
    st.booleans(),  # one row at a time
)


def random_inputs(lengths, heads, sinks, softcap):
    torch.manual_seed(sum(lengths))
    total, d = max(lengths), 3
    query = torch.randn(len(lengths), heads[0], total, d) * 2
    key = torch.randn(len(lengths), heads[1], total, d) * 2
    return query, key, SoftmaxTerms(0.7, 0.0, softcap, torch.randn(heads[0]) if sinks else None)


@given(SHAPES)
def test_prefill_targets_are_maxima_of_tiles(shape):
    lengths, size, heads, softcap, sinks, row_by_row = shape
    query, key, terms = random_inputs(lengths, heads, sinks, softcap)
    blocks = blocks_of(lengths, size)
    with pytest.MonkeyPatch.context() as patch:
        if row_by_row:
            patch.setattr(targets, "MAX_PROBABILITIES", 1)
        got = prefill_targets(query, key, blocks, terms, torch.arange(blocks.rows))
        subset = torch.arange(blocks.rows // 2, blocks.rows, 2)
        of_subset = prefill_targets(query, key, blocks, terms, subset)
    torch.testing.assert_close(of_subset, got[:, :, subset])
    assert got.shape == (len(lengths), heads[0], blocks.rows, blocks.count)
    expected = torch.zeros_like(got)
    group = heads[0] // heads[1]
    for b, length in enumerate(lengths):
        q, k = query[b, :, -length:].tolist(), key[b, :, -length:].tolist()
        for head in range(heads[0]):
            sink = [terms.sinks[head].item()] if sinks else None
            for row, start in enumerate(range(0, length, size)):
                tokens = range(start, min(start + size, length))
                tiles = tile(
                    [q[head]], k[head // group], tokens, size,
                    scale=0.7, softcap=softcap, sinks=sink,
                )  # fmt: skip
                expected[b, head, row, : len(tiles)] = torch.tensor(tiles)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@given(SHAPES)
def test_decode_targets_are_maxima_over_keys_and_group(shape):
    lengths, size, heads, softcap, sinks, row_by_row = shape
    query, key, terms = random_inputs(lengths, heads, sinks, softcap)
    blocks = blocks_of(lengths, size)
    positions = torch.tensor([[length - 1, length // 2, 0] for length in lengths])
    at = (positions + max(lengths) - torch.tensor(lengths)[:, None])[:, None, :, None]
    selected = query.gather(2, at.expand(-1, heads[0], -1, 3))
    with pytest.MonkeyPatch.context() as patch:
        if row_by_row:
            patch.setattr(targets, "MAX_PROBABILITIES", 1)
        got = decode_targets(selected, key, positions, blocks, terms)
    expected = torch.zeros(len(lengths), heads[1], 3, blocks.count)
    group = heads[0] // heads[1]
    for b, length in enumerate(lengths):
        q, k = query[b, :, -length:].tolist(), key[b, :, -length:].tolist()
        for kv in range(heads[1]):
            of_group = slice(kv * group, (kv + 1) * group)
            sink = terms.sinks[of_group].tolist() if sinks else None
            for i, t in enumerate(positions[b].tolist()):
                tiles = tile(
                    q[of_group], k[kv], [t], size,
                    scale=0.7, softcap=softcap, sinks=sink, earlier_only=True,
                )  # fmt: skip
                expected[b, kv, i, : len(tiles)] = torch.tensor(tiles)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_padding_between_tokens_gets_no_attention():
    real = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]]).bool()
    mask = LazyMask(1, 8, 8, attention_mask=real)
    blocks = Blocks(mask, BlockSparse(block_size=2), torch.device("cpu"))
    query, key = torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2)
    rows = torch.arange(4)
    got = prefill_targets(query, key, blocks, SoftmaxTerms(1.0), rows)[0, 0]
    # Uniform over real tokens; a row's maximum comes from its first query, which sees fewest.
    torch.testing.assert_close(got[2], torch.tensor([1.0, 1, 1, 0]) / 3)
    key[0, 0, 3] = 50.0
    query[:] = 1.0
    assert prefill_targets(query, key, blocks, SoftmaxTerms(1.0), rows)[0, 0].equal(got)


def test_memory_does_not_grow_with_the_square_of_the_length(monkeypatch):
    computed = []
    original = targets._probabilities

    def recorded(*args):
        computed.append(original(*args))
        return computed[-1]

    monkeypatch.setattr(targets, "_probabilities", recorded)
    monkeypatch.setattr(targets, "MAX_PROBABILITIES", 4 * 256 * 8)
    blocks = blocks_of([256], 8)
    query, key = torch.randn(1, 2, 256, 4), torch.randn(1, 1, 256, 4)
    prefill_targets(query, key, blocks, SoftmaxTerms(0.5), torch.arange(32))
    assert max(p.numel() for p in computed) <= 4 * 256 * 8
    assert len(computed) == 16
