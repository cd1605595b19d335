import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needlework.attention.apply import Forward
from needlework.attention.blocks import Blocks, kept_blocks
from needlework.attention.masks import LazyMask
from needlework.attention.sketchwalk import Selector, hadamard_sketch
from needlework.attention.state import State
from needlework.config.systems import SketchWalk


def walk(system, forwards, query, key, real):
    """Scores of every layer in each of a run of forwards, given as numbers of new tokens.

    query, key: a list over layers of [batch, heads, tokens, d].
    """
    selector, state = Selector(system), State(system.block_size)
    start, found = 0, []
    for new in forwards:
        end = start + new
        mask = LazyMask(len(real), new, end, start, attention_mask=real[:, :end])
        forward = Forward(None, state)
        forward.blocks = Blocks(mask, system, torch.device("cpu"))
        scores = [
            selector.scores(layer, q[:, :, start:end], k[:, :, :end], forward)
            for layer, (q, k) in enumerate(zip(query, key, strict=True))
        ]
        found.append((forward.blocks, scores))
        start = end
    return found


def softmax_power(logits, s):
    """For logits [h][j]: (sum over h of softmax_j)^s."""
    total = [0.0] * len(logits[0])
    for row in logits:
        top = max(row)
        below = sum(math.exp(x - top) for x in row)
        total = [t + math.exp(x - top) / below for t, x in zip(total, row, strict=True)]
    return [t**s for t in total]


def reference(system, query, key, asked, sketch):
    """Row R of every layer for the last token's block, or for that token itself (`asked` "token").

    One sequence without padding, float64, straight from the formulae: query [layers, heads, n, d],
    key [layers, kv heads, n, d]; all blocks but the last score by their mean queries.
    """
    if system.heads == "mean":
        query, key = query.mean(1, keepdims=True), key.mean(1, keepdims=True)
    size, n, r = system.block_size, query.shape[2], sketch.shape[1]
    b, group = math.ceil(n / size), query.shape[1] // key.shape[1]
    previous, rows = None, []
    for q, k in zip(query, key, strict=True):
        step = np.zeros((b, b))
        for i in range(b):
            logits = []
            for h in range(len(q)):
                mean = q[h, i * size : min(n, (i + 1) * size)].mean(0)
                if i == b - 1 and asked == "token":
                    mean = q[h, n - 1]
                logits.append([])
                for j in range(i + 1):
                    block = k[h // group, j * size : min(n, (j + 1) * size)].mean(0)
                    logits[-1].append((mean @ sketch) @ (block @ sketch) / math.sqrt(r))
            step[i, : i + 1] = softmax_power(logits, system.sparsity_exponent)
        if previous is None or system.walk == "off":
            current = step
        else:
            current = np.zeros((b, b))
            for i in range(b):
                for j in range(i + 1):
                    current[i, j] = sum(previous[i, m] * step[m, j] for m in range(j, i + 1))
        previous = current / current.sum(1, keepdims=True)
        rows.append(previous)
    return rows


@given(
    lengths=st.lists(st.integers(2, 22), min_size=1, max_size=3),
    size=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    form=st.sampled_from(["mean", "sum"]),
    kind=st.sampled_from(["product", "off"]),
    d=st.sampled_from([4, 6]),
    decoded=st.integers(0, 7),
    blocks_at_once=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_walk_follows_the_formulae(
    lengths, size, heads, form, kind, d, decoded, blocks_at_once, seed
):
    """Prefill in chunks of whole blocks, then decode; rows with padding as if they were alone."""
    rng = np.random.default_rng(seed)
    total, layers = max(lengths), 3
    query = rng.normal(size=(layers, len(lengths), heads[0], total, d))
    key = rng.normal(size=(layers, len(lengths), heads[1], total, d))
    system = SketchWalk(block_size=size, heads=form, walk=kind, sketch_dim=4, sparsity_exponent=3.0)
    sketch = hadamard_sketch(d, 4, system.seed).double().numpy()
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[total - length :] = True
    prompt = total - min(decoded, total - 1)
    chunk = blocks_at_once * size if len(lengths) == 1 else prompt
    forwards = [min(chunk, prompt - done) for done in range(0, prompt, chunk)]
    forwards += [1] * (total - prompt)
    found = walk(system, forwards, torch.tensor(query).float(), torch.tensor(key).float(), real)
    end = 0
    for new, (blocks, scores) in zip(forwards, found, strict=True):
        end += new
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            asked = "token" if new == 1 and end > 1 else "block"
            expected = reference(
                system, query[:, b, :, first:end], key[:, b, :, first:end], asked, sketch
            )
            for layer in range(layers):
                for row in range(math.ceil((end - first) / size) - blocks.begin[b]):
                    i = blocks.begin[b] + row
                    np.testing.assert_allclose(
                        scores[layer][b, row, : i + 1], expected[layer][i, : i + 1], 1e-3, 1e-6
                    )
                    assert not scores[layer][b, row, i + 1 :].any()


def test_products_of_many_layers_do_not_underflow():
    torch.manual_seed(0)
    query, key = torch.randn(2, 40, 1, 2, 512, 8)
    system = SketchWalk(block_size=8, heads="sum")
    real = torch.ones(1, 512, dtype=torch.bool)
    ((_, scores),) = walk(system, [512], query, key, real)
    torch.testing.assert_close(scores[-1].sum(-1), torch.ones(1, 64))


def test_a_block_is_reached_through_another():
    """Layer 0 leads from block 2 to block 1, layer 1 from block 1 to block 0: 2 then keeps 0."""
    size, d = 2, 8
    query, key = torch.zeros(2, 1, 1, 6, d), torch.zeros(2, 1, 1, 6, d)
    key[0, 0, 0, 2:4, 0] = query[0, 0, 0, 4:, 0] = 20
    key[1, 0, 0, :2, 1] = query[1, 0, 0, 2:4, 1] = 20
    real = torch.ones(1, 6, dtype=torch.bool)
    system = SketchWalk(block_size=size, sketch_dim=8)
    ((_, crossed),) = walk(system, [6], query, key, real)
    ((_, alone),) = walk(system.model_copy(update={"walk": "off"}), [6], query, key, real)
    assert crossed[1][0, 2].argmax() == 0
    assert crossed[1][0, 2, 0] > 0.99
    torch.testing.assert_close(alone[1][0, 2], torch.full((3,), 1 / 3))


@pytest.mark.parametrize(("d", "r"), [(32, 64), (32, 8), (24, 16)])
def test_sketch_is_a_signed_sample_of_the_hadamard_matrix(d, r):
    sketch = hadamard_sketch(d, r, seed=3)
    padded = 2 ** math.ceil(math.log2(d))
    assert sketch.shape == (d, min(r, padded))
    signs = sketch[:, :1].sign()
    # Up to its signs each column is one of (-1)^(number of bits that i and j share), none twice.
    columns = {
        tuple((-1) ** bin(i & j).count("1") * (-1) ** bin(0).count("1") for i in range(d)): j
        for j in range(padded)
    }
    kinds = set()
    for column in (sketch * signs).T:
        entries = (column * sketch.shape[1] ** 0.5).round().int().tolist()
        assert set(entries) <= {-1, 1}
        kinds.add(columns[tuple(e * entries[0] for e in entries)])
    assert len(kinds) == sketch.shape[1]


def test_sketch_keeps_inner_products():
    """Exactly where nothing is left out; in the mean over seeds where something is."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 32)
    whole = hadamard_sketch(32, 64, seed=0)
    torch.testing.assert_close((x @ whole) @ (y @ whole), x @ y, rtol=1e-4, atol=1e-4)
    found = torch.stack(
        [(x @ s) @ (y @ s) for s in (hadamard_sketch(32, 8, seed) for seed in range(2000))]
    )
    assert abs(found.mean() - x @ y) < 4 * found.std() / 2000**0.5


def test_density_keeps_that_share_of_causal_blocks():
    system = SketchWalk(density=0.25)
    assert sum(kept_blocks(system, i) for i in range(400)) == sum(
        math.ceil((i + 1) / 4) for i in range(400)
    )
