import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from needlework.attention.layers import LayerShape
from needlework.attention.methods import xattention
from needlework.attention.methods.xattention import Method
from needlework.config.attention.xattention import XAttention

HEADS_OF = {"layer": lambda h, per: 0, "group": lambda h, per: h // per, "head": lambda h, per: h}
"""The choice that head h takes part in, with `per` heads of a kv head."""


def reference(query, key, start, size, stride, is_decode, choices):
    """Scores {row: [one for each of its blocks] of each choice} of the queries from `start` on,
    group by group.

    One sequence without padding, float64: query [heads, n, d], key [kv heads, n, d].
    """
    result, n = {}, query.shape[1]
    heads, per = len(query), len(query) // len(key)
    of = [HEADS_OF[choices](h, per) for h in range(heads)]
    for group in range(start // stride, (n - 1) // stride + 1):
        row = group * stride // size
        scores = result.setdefault(row, np.zeros((max(of) + 1, row + 1)))
        for h in range(heads):
            logits = []
            for other in range(group + 1):
                total = 0
                for s in range(stride):
                    t = n - 1 if is_decode else group * stride + stride - 1 - s
                    k = other * stride + s
                    if start <= t < n and k < n:
                        total += query[h, t] @ key[h // per, k]
                logits.append(total * 0.4 / stride)
            below = sum(math.exp(x) for x in logits)
            for other, x in enumerate(logits):
                scores[of[h], other * stride // size] += math.exp(x) / below / of.count(of[h])
    return result


def keeps(scores, threshold):
    """Own and first block, then the best, until their sum reaches the threshold."""
    own = len(scores) - 1
    kept = {0, own}
    for j in sorted(range(own), key=lambda j: -scores[j]):
        if sum(scores[i] for i in kept) >= threshold * sum(scores):
            break
        kept.add(j)
    return kept


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    size=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (4, 4), (6, 2)]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    cut=st.lists(st.integers(1, 29), max_size=2),
    decoded=st.integers(0, 6),
    length_is_known=st.booleans(),
    threshold=st.sampled_from([None, 0.3, 0.8]),
    choices=st.sampled_from(["layer", "group", "head"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_scores_are_antidiagonal_sums(
    select, lengths, size, heads, cut, decoded, length_is_known, threshold, choices, seed
):
    """With arbitrary chunks, then decode; a row uses the queries of its forward."""
    size, stride = size
    rng = np.random.default_rng(seed)
    total = max(lengths)
    query = rng.normal(size=(len(lengths), heads[0], total, 4)) * 2
    key = rng.normal(size=(len(lengths), heads[1], total, 4)) * 2
    prompt = total - min(decoded, total - 1)
    ends = [*sorted({c for c in cut if c < prompt}), *range(prompt, total + 1)]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    count = {"top_k_blocks": 3} if threshold is None else {"threshold": threshold}
    system = XAttention(block_size=size, stride=stride, choices=choices, **count)
    result = select(
        Method(system),
        forwards,
        [torch.tensor(query).float()],
        [torch.tensor(key).float()],
        lengths,
        prompt_tokens=prompt if length_is_known else 0,
        terms={"scaling": 0.4},
    )
    for new, end, (blocks, (scores,), _, (kept,)) in zip(forwards, ends, result, strict=True):
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            expected = reference(
                query[b, :, first:end],
                key[b, :, first:end],
                max(0, end - new - first),
                size,
                stride,
                new == 1 and end > (prompt if length_is_known else 1),
                choices,
            )
            for i, by_choice in expected.items():
                row = i - blocks.begin[b]
                assert scores.shape[1] == len(by_choice)
                for c, values in enumerate(by_choice):
                    if threshold is None:
                        np.testing.assert_allclose(scores[b, c, row, : i + 1], values, 1e-4, 1e-6)
                        best = sorted(range(i), key=lambda j: -values[j])[:2]
                        assert kept[b][c][row] == {i, *best}
                    else:
                        assert kept[b][c][row] == keeps(values, threshold)


def test_computing_in_parts_gives_the_same_scores(select, monkeypatch):
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 4, 40, 8), torch.randn(1, 2, 2, 40, 8)
    system = XAttention(block_size=8, stride=4)
    ((_, whole, _, _),) = select(Method(system), [40], query, key, [40, 31])
    monkeypatch.setattr(xattention, "SCORES_AT_ONCE", 1)
    ((_, parts, _, _),) = select(Method(system), [40], query, key, [40, 31])
    torch.testing.assert_close(parts[0], whole[0])


def test_rows_are_not_scored_against_later_keys(select):
    """Operations are those planned: a little over half of the square."""
    method, tokens = Method(XAttention(block_size=4, stride=2)), 64 * 4
    layer = LayerShape("full_attention", None, 4, 2, 8, 8, True, 4)
    query, key = torch.randn(1, 1, 4, tokens, 8), torch.randn(1, 1, 2, tokens, 8)
    with FlopCounterMode(display=False) as counter:
        select(method, [tokens], query, key, [tokens])
    assert counter.get_total_flops() == method.selection_flops(layer, tokens)
    assert counter.get_total_flops() < 0.54 * 2 * tokens**2 / 2 * 4 * 8


def test_vertical_and_slash_patterns_score_high(select):
    """A key that all queries match, and keys at a fixed distance, at any position."""
    for place in range(4):
        query, key = torch.zeros(1, 1, 1, 64, 40), torch.zeros(1, 1, 1, 64, 40)
        query[..., 0] = 10
        key[0, 0, 0, 20 + place, 0] = 10
        system = XAttention(block_size=4, stride=4, top_k_blocks=2)
        ((_, _, _, kept),) = select(Method(system), [64], query, key, [64])
        assert all(row == {5, i} for i, row in enumerate(kept[0][0][0]) if i > 5)


def test_contradicting_keys_are_refused():
    with pytest.raises(ValueError, match="stride: 6 does not divide block_size 64"):
        XAttention(stride=6)
    with pytest.raises(ValueError, match="remove one of them"):
        XAttention(threshold=0.9, density=0.2)


@pytest.mark.parametrize("count", [{"top_k_blocks": 2}, {"threshold": 0.5}])
def test_later_blocks_do_not_affect_earlier_rows(check_future, count):
    system = XAttention(block_size=4, stride=2, **count)
    check_future(Method(system))
