import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from needlework.attention.blocks import Blocks, choose
from needlework.attention.kernels.attend import attend, attend_compiled, can_compile, has_compiler
from needlework.attention.kernels.gather import SoftmaxTerms, gather
from needlework.attention.masks import LazyMask
from needlework.attention.methods.window import Method, WindowBlocks
from needlework.config.attention.window import Window


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    size=st.integers(1, 6),
    sinks=st.integers(0, 9),
    recent=st.integers(1, 12),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    cut=st.lists(st.integers(1, 23), max_size=3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_tokens_see_only_sinks_and_recent_tokens(
    select, lengths, size, sinks, recent, heads, cut, seed
):
    torch.manual_seed(seed)
    total, batch = max(lengths), len(lengths)
    query = torch.randn(batch, heads[0], total, 8)
    key, value = torch.randn(2, batch, heads[1], total, 8)
    system = Window(block_size=size, sink_tokens=sinks, recent_tokens=recent)
    ends = [*sorted({c for c in cut if c < total}), total]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    result = select(Method(system), forwards, [query], [key], lengths)
    start = 0
    for end, (blocks, (scores,), _, (kept,)) in zip(ends, result, strict=True):
        new = query[:, :, start:end]
        chosen = choose(scores, blocks)
        out, pairs = attend(new, key[:, :, :end], value[:, :, :end], chosen, blocks)
        seen = 0
        for b, length in enumerate(lengths):
            first = total - length
            for t in range(max(start, first), end):
                tokens = [s for s in range(first, t + 1) if s < first + sinks or t - s < recent]
                seen += len(tokens)
                for h in range(heads[0]):
                    k = key[b, h * heads[1] // heads[0], tokens]
                    v = value[b, h * heads[1] // heads[0], tokens]
                    weights = (k @ query[b, h, t] / math.sqrt(8)).softmax(0)
                    torch.testing.assert_close(
                        out[b, h, t - start], weights @ v, rtol=1e-4, atol=1e-5
                    )
            # No block is gathered in vain.
            for row in range(math.ceil((end - first) / size) - blocks.begin[b]):
                i = blocks.begin[b] + row
                queries = range(max(i * size, start - first), min((i + 1) * size, end - first))
                wanted = {
                    s // size for t in queries for s in range(t + 1) if s < sinks or t - s < recent
                }
                assert kept[b][row] == wanted | {i}
        assert pairs == seen
        start = end


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
def test_compiled_and_gathered_windows_are_equal(select):
    """Windows that end inside a block and at its edge, with attention sinks."""
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 120, 16), torch.randn(2, 2, 2, 120, 16)
    terms = SoftmaxTerms(0.25, sinks=torch.randn(4))
    for recent, forwards in [(40, [70, 50]), (48, [64, 56])]:
        system, start = Window(block_size=16, sink_tokens=5, recent_tokens=recent), 0
        for blocks, (scores,), _, _ in select(Method(system), forwards, [query], [key], [120, 75]):
            chosen, end = choose(scores, blocks)[:, None], blocks.mask.total
            tensors = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
            with torch.inference_mode():
                assert can_compile(*tensors, blocks, terms)
                out, pairs = attend_compiled(*tensors, chosen, blocks, terms)
                expected, count = gather(*tensors, chosen, blocks, terms)
            real = torch.arange(start, end) >= blocks.first[:, None]
            real = real[:, None, :, None]
            torch.testing.assert_close(out * real, expected * real, rtol=1e-4, atol=1e-5)
            assert pairs == count
            start = end


def test_right_padding_is_not_compiled():
    real = torch.ones(1, 32, dtype=torch.bool)
    real[:, 20:] = False
    mask = LazyMask(1, 32, 32, attention_mask=real)
    system = Window(block_size=16)
    blocks = WindowBlocks(Blocks(mask, system, torch.device("cpu")), system)
    query, key, value = torch.randn(3, 1, 2, 32, 16)
    with torch.inference_mode():
        assert not can_compile(query, key, value, blocks, SoftmaxTerms(0.25))


def test_a_window_over_all_tokens_equals_stock_attention(select):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 50, 8)
    system = Window(block_size=8, sink_tokens=0, recent_tokens=50)
    ((blocks, (scores,), _, _),) = select(Method(system), [50], [query], [key], [50])
    out, _ = attend(query, key, value, choose(scores, blocks), blocks)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
