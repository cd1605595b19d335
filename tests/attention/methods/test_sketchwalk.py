import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needlework.attention.base import Forward
from needlework.attention.blocks import Blocks
from needlework.attention.cache_state import MethodState
from needlework.attention.masks import LazyMask
from needlework.attention.methods import sketchwalk
from needlework.attention.methods.sketchwalk import Method, hadamard_sketch
from needlework.config.attention import SketchWalk

FEW = {
    "paper": {"top_k_blocks": 3},
    "official": {"preset": "official"},
    "box": {"preset": "box", "top_k_blocks": 3},
}


def softmax_power(logits, s):
    """For logits [h][j]: (sum over h of softmax_j)^s."""
    total = [0.0] * len(logits[0])
    for row in logits:
        top = max(row)
        below = sum(math.exp(x - top) for x in row)
        total = [t + math.exp(x - top) / below for t, x in zip(total, row, strict=True)]
    return [t**s for t in total]


def ranked(system, row):
    """Blocks that a row of scores, its own block last, keeps by rank, and its own."""
    own = len(row) - 1
    if system.select == "topk":
        best = sorted(range(own), key=lambda j: (-row[j], j))
        return {own, *best[: system.kept_blocks(own) - 1]}
    return {own, *above_quantile(system, row, range(own + 1))}


def above_quantile(system, row, among):
    limit = np.quantile([row[j] for j in among], system.quantile) if among else np.inf
    return {j for j in among if row[j] > limit}


def forced(system, i, tokens, is_decode):
    """Blocks that row i keeps whatever their scores, in a prompt of so many tokens."""

    def blocks(share):
        return math.ceil(Fraction(str(share)) * tokens / system.block_size)

    kept = {j for j in range(i + 1) if j < blocks(system.sink_share)}
    kept |= {j for j in range(i + 1) if i - j < blocks(system.local_share)}
    last = math.ceil(tokens / system.block_size) - system.dense_last_rows
    return set(range(i + 1)) if i >= last and not is_decode else kept


def selected(system, row, tokens, is_decode):
    """All that a row keeps; what is forced counts among the blocks of `topk`, and sinks and local
    blocks do not count towards the quantile."""
    own = len(row) - 1
    sure = forced(system, own, tokens, is_decode)
    if system.select == "quantile":
        shares = forced(system, own, tokens, is_decode=True)
        others = [j for j in range(own + 1) if j not in shares]
        return {own} | sure | above_quantile(system, row, others)
    first = {own} | sure
    rest = sorted((j for j in range(own) if j not in first), key=lambda j: (-row[j], j))
    return first | set(rest[: max(0, system.kept_blocks(own) - len(first))])


def without_others(system, x):
    """x [b, b] with only those entries of each row that it keeps by rank."""
    found = np.zeros_like(x)
    for i in range(len(x)):
        for j in ranked(system, x[i, : i + 1]):
            found[i, j] = x[i, j]
    return found


def times(system, r, w):
    """R W, block by block."""
    if system.walk_memory == "sparse":
        r, w = without_others(system, r), without_others(system, w)
    found = np.zeros_like(r)
    for i in range(len(r)):
        for j in range(i + 1):
            found[i, j] = sum(r[i, m] * w[m, j] for m in range(j, i + 1))
    return found


def bound(q, keys):
    """Of each coordinate the most that any key [n, r] adds to its product with q [r]."""
    return sum(max(q[c] * k[c] for k in keys) for c in range(len(q)))


def reference(system, query, key, is_decode, sketch):
    """R of every layer; when decoding the last row is that of the last queries.

    One sequence without padding, float64, straight from the formulae: query [layers, heads, n, d],
    key [layers, kv heads, n, d]; all blocks but the last score by their mean queries.
    """
    if system.heads == "mean":
        query, key = query.mean(1, keepdims=True), key.mean(1, keepdims=True)
    size, n, r = system.block_size, query.shape[2], sketch.shape[1]
    b, group = math.ceil(n / size), query.shape[1] // key.shape[1]
    previous, found = None, []
    for q, k in zip(query, key, strict=True):
        step = np.zeros((b, b))
        for i in range(b):
            logits = []
            for h in range(len(q)):
                mean = q[h, i * size : min(n, (i + 1) * size)].mean(0)
                if i == b - 1 and is_decode:
                    mean = q[h, max(0, n - system.decode_queries) : n].mean(0)
                logits.append([])
                for j in range(i + 1):
                    block = k[h // group, j * size : min(n, (j + 1) * size)]
                    if system.keys == "mean":
                        score = (mean @ sketch) @ (block.mean(0) @ sketch) / math.sqrt(r)
                    else:
                        score = bound(mean @ sketch, block @ sketch) / math.sqrt(r)
                    logits[-1].append(system.score_scale * score)
            step[i, : i + 1] = softmax_power(logits, system.sparsity_exponent)
            if system.walk == "damped":
                step[i] /= step[i].sum()
        if system.walk == "off" or (system.walk == "product" and previous is None):
            current = step
        elif system.walk == "product":
            current = times(system, previous, step)
        else:
            current, beta = step if previous is None else previous, system.walk_damping
            for _ in range(system.walk_steps):
                current = (1 - beta) * step + beta * times(system, current, step)
        previous = current / current.sum(1, keepdims=True)
        found.append(previous)
    return found


@given(
    lengths=st.lists(st.integers(2, 22), min_size=1, max_size=3),
    size=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    d=st.sampled_from([4, 6]),
    cut=st.lists(st.integers(1, 21), max_size=2),
    decoded=st.integers(0, 7),
    is_told=st.booleans(),
    top_k_blocks=st.integers(1, 4),
    form=st.fixed_dictionaries(
        {
            "heads": st.sampled_from(["mean", "sum"]),
            "keys": st.sampled_from(["mean", "box"]),
            "sketch_dim": st.sampled_from([4, None]),
            "score_scale": st.sampled_from([1.0, 1.28]),
            "sparsity_exponent": st.sampled_from([1.0, 3.0]),
            "walk": st.sampled_from(["product", "damped", "off"]),
            "walk_steps": st.integers(1, 3),
            "walk_memory": st.sampled_from(["full", "sparse"]),
            "select": st.sampled_from(["topk", "quantile"]),
            "quantile": st.sampled_from([0.4, 0.75]),
            "local_share": st.sampled_from([0.0, 0.1, 0.3]),
            "sink_share": st.sampled_from([0.0, 0.1, 0.3]),
            "dense_last_rows": st.integers(0, 2),
            "decode_queries": st.sampled_from([1, 3, 8]),
        }
    ),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=200)
def test_walk_and_choice_follow_the_formulae(
    select, lengths, size, heads, d, cut, decoded, is_told, top_k_blocks, form, seed
):
    """Prefill in parts cut anywhere, then decode; rows with padding as if they were alone."""
    rng = np.random.default_rng(seed)
    total, layers = max(lengths), 3
    query = rng.normal(size=(layers, len(lengths), heads[0], total, d)) * 1.5
    key = rng.normal(size=(layers, len(lengths), heads[1], total, d)) * 1.5
    count = {}
    if form["select"] == "topk":
        # Of rows that keep their own block alone, W can be too small for float32.
        count["top_k_blocks"] = max(top_k_blocks, 2 if form["walk_memory"] == "sparse" else 1)
    system = SketchWalk(block_size=size, **form, **count)
    sketch = np.eye(d)
    if system.sketch_dim is not None:
        sketch = hadamard_sketch(d, system.sketch_dim, system.seed).double().numpy()
    prompt = total - min(decoded, total - 1)
    ends = [*sorted({c for c in cut if c < prompt}), *range(prompt, total + 1)]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    found = select(
        Method(system),
        forwards,
        torch.tensor(query).float(),
        torch.tensor(key).float(),
        lengths,
        prompt_tokens=prompt if is_told else 0,
    )
    for new, end, (blocks, _, walks, kept) in zip(forwards, ends, found, strict=True):
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            is_decode = new == 1 and end > (prompt if is_told else 1)
            expected = reference(
                system, query[:, b, :, first:end], key[:, b, :, first:end], is_decode, sketch
            )
            tokens = max(end, prompt if is_told else 0) - first
            for layer in range(layers):
                for row in range(math.ceil((end - first) / size) - blocks.begin[b]):
                    i = blocks.begin[b] + row
                    wanted = expected[layer][i, : i + 1]
                    np.testing.assert_allclose(walks[layer][b, row, : i + 1], wanted, 1e-3, 1e-6)
                    assert not walks[layer][b, row, i + 1 :].any()
                    assert kept[layer][b][row] == selected(system, wanted, tokens, is_decode)


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_chunks_of_whole_blocks_choose_as_one_shot(select, preset, memory):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 4, 90, 8), torch.randn(3, 2, 2, 90, 8)
    system = SketchWalk(**FEW[preset], block_size=4, walk_memory=memory)

    def choices(forwards):
        """Of each layer, every row of blocks, then every decode, of the row without padding."""
        found = select(Method(system), forwards, query, key, [90, 53], prompt_tokens=80)
        return [[row for _, _, _, kept in found for row in kept[layer][0]] for layer in range(3)]

    whole = choices([80, *[1] * 10])
    assert [len(layer) for layer in whole] == [30] * 3
    assert choices([24, 4, 52, *[1] * 10]) == whole


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_what_decoded_densely_is_chosen_from_after(select, preset, memory):
    """Tokens that decode over the ends of blocks, then another prompt."""
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 4, 90, 8), torch.randn(3, 2, 2, 90, 8)
    form = {**FEW[preset], "block_size": 4, "walk_memory": memory}
    whole, dense = (
        select(Method(SketchWalk(**form, skip_decode=skip)), forwards, query, key, [90, 53])
        for skip, forwards in [(False, [90]), (True, [64, *[1] * 11, 15])]
    )
    assert all(scores == [None] * 3 for _, scores, _, _ in dense[1:-1])
    (_, _, walks, kept), (blocks, _, last, also) = whole[0], dense[-1]
    for layer in range(3):
        for b, begin in enumerate(blocks.begin):
            rows = slice(begin, -(-[90, 53][b] // 4))
            n = rows.stop - begin
            torch.testing.assert_close(last[layer][b, :n], walks[layer][b, rows])
            assert also[layer][b][:n] == kept[layer][b][rows]


def test_memory_of_kept_entries_grows_with_blocks_times_kept(select):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 256, 8), torch.randn(2, 1, 2, 256, 8)
    system = SketchWalk(block_size=4, top_k_blocks=3, walk_memory="sparse")
    state = []

    class Watched(Method):
        def scores(self, layer, q, k, forward):
            state.append(forward.state)
            return super().scores(layer, q, k, forward)

    select(Watched(system), [256], query, key, [256])
    held = state[-1].tensors[1]
    assert "steps" not in held
    assert held["to"].shape == held["weights"].shape == (1, 64, 3)


def test_advance_in_parts_is_the_same(select, monkeypatch):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 2, 90, 8), torch.randn(3, 2, 2, 90, 8)
    system = SketchWalk(block_size=4, top_k_blocks=3, walk_memory="sparse")
    whole = select(Method(system), [90], query, key, [90, 53])
    monkeypatch.setattr(sketchwalk, "SCORES_AT_ONCE", 1)
    parts = select(Method(system), [90], query, key, [90, 53])
    for one, other in zip(whole[0][2], parts[0][2], strict=True):
        torch.testing.assert_close(one, other)


def _runner(selector, state):
    """Forwards upon a state that the test itself changes in between."""

    def run(query, key, start, end, told=0):
        mask = LazyMask(1, end - start, end, start)
        forward = Forward(state, told)
        forward.blocks = Blocks(mask, selector.system, torch.device("cpu"))
        state.first, state.length = mask.first, end
        return selector.scores(0, query[0, :, :, start:end], key[0, :, :, :end], forward)

    return run


@pytest.mark.parametrize("decode_queries", [1, 5])
def test_queries_cropped_from_the_last_block_leave_no_trace(select, decode_queries):
    """Five wrong tokens at a time, over and over, as speculative decoding does."""
    torch.manual_seed(0)
    selector = Method(SketchWalk(block_size=8, decode_queries=decode_queries))
    query, key = torch.randn(1, 1, 2, 40, 8), torch.randn(1, 1, 2, 40, 8)
    (*_, (_, (expected,), _, _)) = select(
        selector, [24, 1, 1], query[..., :26, :], key[..., :26, :], [26]
    )
    state = MethodState(8)
    run = _runner(selector, state)
    run(query, key, 0, 24)
    run(query, key, 24, 25)
    for _ in range(4):
        noise = torch.randn(1, 1, 2, 40, 8)
        wrong = torch.cat([key[..., :25, :], noise[..., 25:, :]], -2)
        for end in range(26, 31):
            run(noise, wrong, end - 1, end)
        state.crop(-5)
    torch.testing.assert_close(run(query, key, 25, 26), expected)


def test_a_chunk_of_one_token_asks_with_the_tokens_of_its_block_alone(select):
    """Upon tokens that decoded, where the block before lies in the places not reached yet."""
    torch.manual_seed(0)
    selector = Method(SketchWalk(block_size=8))
    query, key = torch.randn(1, 1, 2, 36, 8), torch.randn(1, 1, 2, 36, 8)
    ((_, (expected,), _, _),) = select(selector, [36], query, key, [36])
    run = _runner(selector, MethodState(8))
    run(query, key, 0, 24)
    for end in range(25, 36):
        run(query, key, end - 1, end)
    torch.testing.assert_close(run(query, key, 35, 36, told=40), expected[:, -1:])


def test_presets_are_points_of_one_space():
    paper, official, box = SketchWalk(), SketchWalk(preset="official"), SketchWalk(preset="box")
    assert box == SketchWalk(heads="sum", keys="box", walk="off", sketch_dim=None).model_copy(
        update={"preset": "box"}
    )
    assert (paper.heads, paper.walk, paper.select, paper.decode_queries) == (
        "mean",
        "product",
        "topk",
        1,
    )
    assert (official.heads, official.walk, official.select, official.decode_queries) == (
        "sum",
        "damped",
        "quantile",
        32,
    )
    assert SketchWalk(preset="official", walk="product").walk == "product"
    # What YAML makes of `walk: off`.
    assert SketchWalk(walk=False).walk == "off"
    assert SketchWalk(preset="official", sketch_dim=64).sketch_dim == 64
    changed = SketchWalk(preset="official", walk="product", sketch_dim=64)
    for system in (paper, official, box, changed):
        assert SketchWalk.model_validate(system.model_dump(mode="json")) == system
        plain = system.model_dump() | {"preset": "paper"}
        assert SketchWalk(**plain) == system.model_copy(update={"preset": "paper"})
    with pytest.raises(ValueError, match="density: select quantile does not count"):
        SketchWalk(preset="official", density=0.2)


def test_a_box_holds_the_key_that_a_mean_hides(select):
    """One key of block 1 is what the last block asks for; its neighbours point the other way."""
    d = 8
    query, key = torch.zeros(1, 1, 1, 16, d), torch.zeros(1, 1, 1, 16, d)
    query[..., 12:, 0] = 4
    key[..., 5, 0], key[..., 6:8, 0] = 9, -9
    found = {}
    for keys in ("mean", "box"):
        system = SketchWalk(keys=keys, block_size=4, top_k_blocks=2, walk="off")
        ((_, _, _, kept),) = select(Method(system), [16], query, key, [16])
        found[keys] = kept[0][0][3]
    assert found == {"mean": {0, 3}, "box": {1, 3}}


@pytest.mark.parametrize("keys", ["mean", "box"])
def test_padding_on_the_right_counts_for_nothing(keys):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 22, 8)
    selector = Method(SketchWalk(keys=keys, heads="sum", block_size=4, top_k_blocks=2))

    def scores(tokens, real):
        padding = torch.arange(tokens)[None] < real
        forward = Forward(MethodState(4))
        mask = LazyMask(1, tokens, tokens, attention_mask=padding)
        forward.blocks = Blocks(mask, selector.system, torch.device("cpu"))
        return selector.scores(0, query[:, :, :tokens], key[:, :, :tokens], forward)

    torch.testing.assert_close(scores(22, 18)[:, :5, :5], scores(18, 18))


def test_products_of_many_layers_do_not_underflow(select):
    torch.manual_seed(0)
    query, key = torch.randn(2, 40, 1, 2, 512, 8)
    system = SketchWalk(block_size=8, heads="sum")
    ((_, scores, _, _),) = select(Method(system), [512], query, key, [512])
    torch.testing.assert_close(scores[-1].sum(-1), torch.ones(1, 64))


def test_a_block_is_reached_through_another(select):
    """Layer 0 leads from block 2 to block 1, layer 1 from block 1 to block 0: 2 then keeps 0."""
    size, d = 2, 8
    query, key = torch.zeros(2, 1, 1, 6, d), torch.zeros(2, 1, 1, 6, d)
    key[0, 0, 0, 2:4, 0] = query[0, 0, 0, 4:, 0] = 20
    key[1, 0, 0, :2, 1] = query[1, 0, 0, 2:4, 1] = 20
    system = SketchWalk(block_size=size, sketch_dim=8)
    ((_, crossed, _, _),) = select(Method(system), [6], query, key, [6])
    off = system.model_copy(update={"walk": "off"})
    ((_, alone, _, _),) = select(Method(off), [6], query, key, [6])
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
    assert sum(system.kept_blocks(i) for i in range(400)) == sum(
        math.ceil((i + 1) / 4) for i in range(400)
    )


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("walk", ["product", "damped", "off"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_nothing_comes_from_later_blocks(check_future, preset, walk, memory):
    form = {"walk": walk, "walk_memory": memory, "dense_last_rows": 2}
    check_future(Method(SketchWalk(**FEW[preset] | form, block_size=4)))
