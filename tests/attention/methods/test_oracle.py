import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needlework.attention.methods import oracle
from needlework.attention.methods.oracle import Method
from needlework.config.attention.oracle import Oracle


def reference(query, key, start, size, pool, softcap=None, sinks=None):
    """Pooled probabilities {(row, block): value} of the queries from `start` on, one at a time.

    One sequence without padding: query [heads, n, d], key [kv heads, n, d].
    """
    result = {}
    group = len(query) // len(key)
    for h in range(len(query)):
        for t in range(start, query.shape[1]):
            logits = [query[h, t] @ key[h // group, s] * 0.5 for s in range(t + 1)]
            if softcap is not None:
                logits = [softcap * math.tanh(x / softcap) for x in logits]
            below = sum(math.exp(x) for x in logits)
            if sinks is not None:
                below += math.exp(sinks[h])
            for s, x in enumerate(logits):
                tile = t // size, s // size
                p = math.exp(x) / below
                result[tile] = (
                    max(result.get(tile, 0), p) if pool == "max" else result.get(tile, 0) + p
                )
    return result


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    size=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    pool=st.sampled_from(["max", "sum"]),
    cut=st.lists(st.integers(1, 19), max_size=3),
    extra=st.sampled_from(["", "softcap", "sinks"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_scores_are_the_pooled_probabilities(select, lengths, size, heads, pool, cut, extra, seed):
    """With arbitrary chunks; a row pools the queries of its forward."""
    rng = np.random.default_rng(seed)
    total = max(lengths)
    query = rng.normal(size=(len(lengths), heads[0], total, 4)) * 2
    key = rng.normal(size=(len(lengths), heads[1], total, 4))
    ends = [*sorted({c for c in cut if c < total}), total]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    sinks = rng.normal(size=heads[0])
    terms = {
        "scaling": 0.5,
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": torch.tensor(sinks) if extra == "sinks" else None,
    }
    system = Oracle(block_size=size, pool=pool)
    result = select(
        Method(system),
        forwards,
        [torch.tensor(query).float()],
        [torch.tensor(key).float()],
        lengths,
        terms=terms,
    )
    for new, end, (blocks, (scores,), _, _) in zip(forwards, ends, result, strict=True):
        assert torch.isfinite(scores).all()
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            expected = reference(
                query[b, :, first:end],
                key[b, :, first:end],
                max(0, end - new - first),
                size,
                pool,
                terms["softcap"],
                sinks if extra == "sinks" else None,
            )
            for row in range(math.ceil((end - first) / size) - blocks.begin[b]):
                for j in range(blocks.count):
                    value = expected.get((blocks.begin[b] + row, j), 0)
                    np.testing.assert_allclose(scores[b, row, j], value, 1e-4, 1e-6)


def test_computing_in_parts_gives_the_same_scores(select, monkeypatch):
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 4, 40, 8), torch.randn(1, 2, 2, 40, 8)
    ((_, whole, _, _),) = select(Method(Oracle(block_size=4)), [40], query, key, [40, 31])
    monkeypatch.setattr(oracle, "PROBABILITIES_AT_ONCE", 1)
    ((_, parts, _, _),) = select(Method(Oracle(block_size=4)), [40], query, key, [40, 31])
    torch.testing.assert_close(parts[0], whole[0])


def test_the_attended_block_is_kept(select):
    """One query of a late block attends to one token of block 3; max pooling keeps it."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 2, 64, 8) * 0.1, torch.randn(1, 1, 1, 64, 8) * 0.1
    key[0, 0, 0, 14] = query[0, 0, 1, 61] = 5
    ((_, _, _, kept),) = select(
        Method(Oracle(block_size=4, top_k_blocks=2)), [64], query, key, [64]
    )
    assert kept[0][0][15] == {3, 15}


@pytest.mark.parametrize("pool", ["max", "sum"])
def test_later_blocks_do_not_affect_earlier_rows(check_future, pool):
    check_future(Method(Oracle(block_size=4, pool=pool, top_k_blocks=2)))
