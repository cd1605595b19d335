import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sketchwalk_reference import kept_blocks, reference_walk

from needlework.attention.base import Forward
from needlework.attention.blocks import Blocks
from needlework.attention.cache_state import MethodState
from needlework.attention.hadamard import hadamard_sketch
from needlework.attention.masks import LazyMask
from needlework.attention.methods import sketchwalk
from needlework.attention.methods.sketchwalk import Method
from needlework.config.attention.sketchwalk import SketchWalk

pytestmark = pytest.mark.slow

FEW_BLOCKS = {
    "paper": {"top_k_blocks": 3},
    "official": {"preset": "official"},
    "box": {"preset": "box", "top_k_blocks": 3},
}


@given(
    lengths=st.lists(st.integers(2, 22), min_size=1, max_size=3),
    size=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    d=st.sampled_from([4, 6]),
    cut=st.lists(st.integers(1, 21), max_size=2),
    decoded=st.integers(0, 7),
    length_is_known=st.booleans(),
    top_k_blocks=st.integers(1, 4),
    variant=st.fixed_dictionaries(
        {
            "heads": st.sampled_from(["mean", "sum"]),
            "keys": st.sampled_from(["mean", "box"]),
            "sketch_dim": st.sampled_from([4, None]),
            "score_scale": st.sampled_from([1.0, 1.28, None]),
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
    unranked_sinks=st.sampled_from([None, 0.0, 0.05, 0.2]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_walk_and_choice_match_the_reference(
    select,
    lengths,
    size,
    heads,
    d,
    cut,
    decoded,
    length_is_known,
    top_k_blocks,
    variant,
    unranked_sinks,
    seed,
):
    """Prefill in arbitrary chunks, then decode; padded rows as if they were alone."""
    rng = np.random.default_rng(seed)
    total, layers = max(lengths), 3
    query = rng.normal(size=(layers, len(lengths), heads[0], total, d)) * 1.5
    key = rng.normal(size=(layers, len(lengths), heads[1], total, d)) * 1.5
    count = {}
    if variant["select"] == "topk":
        # With only the own block kept, W can underflow float32.
        count["top_k_blocks"] = max(top_k_blocks, 2 if variant["walk_memory"] == "sparse" else 1)
    elif unranked_sinks is not None:
        count["unranked_sink_share"] = min(unranked_sinks, variant["sink_share"])
    system = SketchWalk(block_size=size, **variant, **count)
    sketch = np.eye(d)
    if system.sketch_dim is not None:
        sketch = hadamard_sketch(d, system.sketch_dim, system.seed).double().numpy()
    prompt = total - min(decoded, total - 1)
    ends = [*sorted({c for c in cut if c < prompt}), *range(prompt, total + 1)]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    result = select(
        Method(system),
        forwards,
        torch.tensor(query).float(),
        torch.tensor(key).float(),
        lengths,
        prompt_tokens=prompt if length_is_known else 0,
    )
    for new, end, (blocks, _, walks, kept) in zip(forwards, ends, result, strict=True):
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            is_decode = new == 1 and end > (prompt if length_is_known else 1)
            expected = reference_walk(
                system, query[:, b, :, first:end], key[:, b, :, first:end], is_decode, sketch
            )
            tokens = max(end, prompt if length_is_known else 0) - first
            for layer in range(layers):
                for row in range(math.ceil((end - first) / size) - blocks.begin[b]):
                    i = blocks.begin[b] + row
                    row_scores = expected[layer][i, : i + 1]
                    np.testing.assert_allclose(
                        walks[layer][b, row, : i + 1], row_scores, 1e-3, 1e-6
                    )
                    assert not walks[layer][b, row, i + 1 :].any()
                    assert kept[layer][b][row] == kept_blocks(system, row_scores, tokens, is_decode)


def released_choice(query, key, size):
    """Blocks that each row keeps in the released form, of queries and keys [heads, n, d], n a
    multiple of the block size: softmax of pooled scores times d / 100, per head; three damped
    steps; above the quantile of 0.875, whose pool is without the first 2.5 % and the last 5 %."""
    heads, n, d = query.shape
    rows = n // size
    q = query.reshape(heads, rows, size, d).mean(2)
    k = key.reshape(heads, rows, size, d).mean(2)
    step = np.zeros((rows, rows))
    for h in range(heads):
        for i in range(rows):
            logits = [q[h, i] @ k[h, j] / math.sqrt(d) * d / 100 for j in range(i + 1)]
            weights = np.exp(np.array(logits) - max(logits))
            step[i, : i + 1] += weights / weights.sum() / heads
    walk = step
    for _ in range(3):
        walk = 0.75 * step + 0.25 * walk @ step
    kept, sinks, local = [], math.ceil(n * 0.05 / size), math.ceil(n * 0.05 / size)
    for i in range(rows):
        pool = walk[i, math.ceil(n * 0.025 / size) : max(0, i - local + 1)]
        limit = np.quantile(pool, 0.875) if len(pool) else np.inf
        row = {j for j in range(i + 1) if j < sinks or i - j < local or walk[i, j] > limit}
        kept.append({*range(i + 1)} if i >= rows - 4 else row)
    return kept


@pytest.mark.parametrize("d", [8, 32, 128])
def test_official_chooses_as_the_released_form(select, d):
    """Also where heads are not of 128 dimensions, and with sinks that leave the quantile's pool."""
    rng = np.random.default_rng(d)
    query, key = rng.normal(size=(2, 1, 1, 2, 160, d)) * 2
    ((_, _, _, kept),) = select(
        Method(SketchWalk(preset="official", block_size=2)),
        [160],
        torch.tensor(query).float(),
        torch.tensor(key).float(),
        [160],
    )
    assert kept[0][0] == released_choice(query[0, 0], key[0, 0], 2)


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_chunks_of_whole_blocks_choose_as_one_pass(select, preset, memory):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 4, 90, 8), torch.randn(3, 2, 2, 90, 8)
    system = SketchWalk(**FEW_BLOCKS[preset], block_size=4, walk_memory=memory)

    def choices(forwards):
        """Kept blocks per layer, of every row and then every decode, of the unpadded batch row."""
        result = select(Method(system), forwards, query, key, [90, 53], prompt_tokens=80)
        return [[row for _, _, _, kept in result for row in kept[layer][0]] for layer in range(3)]

    whole = choices([80, *[1] * 10])
    assert [len(layer) for layer in whole] == [30] * 3
    assert choices([24, 4, 52, *[1] * 10]) == whole


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_prefill_after_dense_decode_chooses_among_decoded_blocks(select, preset, memory):
    """Decode across block boundaries, then prefill again."""
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 4, 90, 8), torch.randn(3, 2, 2, 90, 8)
    variant = {**FEW_BLOCKS[preset], "block_size": 4, "walk_memory": memory}
    whole, dense = (
        select(Method(SketchWalk(**variant, stages=stages)), forwards, query, key, [90, 53])
        for stages, forwards in [("both", [90]), ("prefill", [64, *[1] * 11, 15])]
    )
    assert all(scores == [None] * 3 for _, scores, _, _ in dense[1:-1])
    (_, _, walks, kept), (blocks, _, last, also) = whole[0], dense[-1]
    for layer in range(3):
        for b, begin in enumerate(blocks.begin):
            rows = slice(begin, -(-[90, 53][b] // 4))
            n = rows.stop - begin
            torch.testing.assert_close(last[layer][b, :n], walks[layer][b, rows])
            assert also[layer][b][:n] == kept[layer][b][rows]


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_decode_after_dense_prefill_chooses_as_after_sparse_prefill(select, preset, memory):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 4, 90, 8), torch.randn(3, 2, 2, 90, 8)
    variant = {**FEW_BLOCKS[preset], "block_size": 4, "walk_memory": memory}
    after_sparse, after_dense = (
        select(
            Method(SketchWalk(**variant, stages=stages)), [64, 12, *[1] * 14], query, key, [90, 53]
        )
        for stages in ("both", "decode")
    )
    assert [scores for _, scores, _, _ in after_dense[:2]] == [[None] * 3] * 2
    for (_, _, walks, kept), (_, _, same, also) in zip(
        after_sparse[2:], after_dense[2:], strict=True
    ):
        torch.testing.assert_close(walks, same)
        assert kept == also


def test_sparse_walk_memory_has_k_entries_per_row(select):
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


def test_walk_in_parts_gives_the_same_result(select, monkeypatch):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 2, 90, 8), torch.randn(3, 2, 2, 90, 8)
    system = SketchWalk(block_size=4, top_k_blocks=3, walk_memory="sparse")
    whole = select(Method(system), [90], query, key, [90, 53])
    monkeypatch.setattr(sketchwalk, "SCORES_AT_ONCE", 1)
    parts = select(Method(system), [90], query, key, [90, 53])
    for one, other in zip(whole[0][2], parts[0][2], strict=True):
        torch.testing.assert_close(one, other)


def _runner(selector, state):
    """Run forwards on a state that the test can change in between."""

    def run(query, key, start, end, prompt_tokens=0):
        mask = LazyMask(1, end - start, end, start)
        forward = Forward(state, prompt_tokens)
        forward.blocks = Blocks(mask, selector.system, torch.device("cpu"))
        state.first, state.length = mask.first, end
        return selector.scores(0, query[0, :, :, start:end], key[0, :, :, :end], forward)

    return run


@pytest.mark.parametrize("decode_queries", [1, 5])
def test_cropped_queries_have_no_effect(select, decode_queries):
    """Repeatedly five wrong tokens, as in speculative decoding."""
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


def test_one_token_chunk_uses_only_queries_of_its_block(select):
    """After decode, the remaining slots still hold the previous block."""
    torch.manual_seed(0)
    selector = Method(SketchWalk(block_size=8))
    query, key = torch.randn(1, 1, 2, 36, 8), torch.randn(1, 1, 2, 36, 8)
    ((_, (expected,), _, _),) = select(selector, [36], query, key, [36])
    run = _runner(selector, MethodState(8))
    run(query, key, 0, 24)
    for end in range(25, 36):
        run(query, key, end - 1, end)
    torch.testing.assert_close(run(query, key, 35, 36, prompt_tokens=40), expected[:, -1:])


def test_box_finds_a_key_that_a_mean_hides(select):
    """One key of block 1 matches the last block's query; the keys next to it oppose it."""
    d = 8
    query, key = torch.zeros(1, 1, 1, 16, d), torch.zeros(1, 1, 1, 16, d)
    query[..., 12:, 0] = 4
    key[..., 5, 0], key[..., 6:8, 0] = 9, -9
    result = {}
    for keys in ("mean", "box"):
        system = SketchWalk(keys=keys, block_size=4, top_k_blocks=2, walk="off")
        ((_, _, _, kept),) = select(Method(system), [16], query, key, [16])
        result[keys] = kept[0][0][3]
    assert result == {"mean": {0, 3}, "box": {1, 3}}


@pytest.mark.parametrize("keys", ["mean", "box"])
def test_right_padding_has_no_effect(keys):
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


@pytest.mark.parametrize("choices", ["group", "head"])
@pytest.mark.parametrize("rule", [{"top_k_blocks": 3}, {"select": "quantile", "sink_share": 0.1}])
def test_a_choice_of_its_own_is_that_of_the_heads_alone(select, choices, rule):
    """In prefill and decode, with left padding."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 44, 8) * 2, torch.randn(2, 2, 2, 44, 8) * 2

    def run(q, k, choices):
        system = SketchWalk(preset="box", block_size=4, choices=choices, **rule)
        return select(Method(system), [40, 1, 1, 1, 1], q, k, [44, 31], prompt_tokens=40)

    width = {"group": 2, "head": 1}[choices]
    together = run(query, key, choices)
    for c in range(4 // width):
        heads, kv = slice(c * width, (c + 1) * width), slice(c * width // 2, c * width // 2 + 1)
        alone = run(query[:, :, heads], key[:, :, kv], "layer")
        for (_, scores, _, kept), (_, expected, _, expected_kept) in zip(
            together, alone, strict=True
        ):
            for layer in range(2):
                torch.testing.assert_close(scores[layer][:, c], expected[layer])
                for b in range(2):
                    assert kept[layer][b][c] == expected_kept[layer][b]


@pytest.mark.parametrize("scale", [1, 8])
def test_preset_quest_chooses_the_blocks_of_quest(select, scale):
    """Per head, the blocks whose box bounds the highest score, in decode only; the token's own
    block, which Quest ranks with the others, is always kept. Scores far apart do not tie."""
    generator = torch.Generator().manual_seed(0)
    d, size, prompt, steps, count = 8, 4, 57, 9, 4
    query = torch.randn(2, 1, 4, prompt + steps, d, generator=generator) * scale
    key = torch.randn(2, 1, 2, prompt + steps, d, generator=generator) * scale
    system = SketchWalk(preset="quest", block_size=size, top_k_blocks=count)
    forwards = [prompt, *[1] * steps]
    prefill, *decoded = select(Method(system), forwards, query, key, [prompt + steps])
    assert prefill[1] == prefill[3] == [None, None]
    agreed = 0
    for step, (_, _, _, kept) in enumerate(decoded):
        n = prompt + step + 1
        own = (n - 1) // size
        for layer in range(2):
            for head in range(4):
                q = query[layer, 0, head, n - 1].tolist()
                bounds = []
                for block in range(own + 1):
                    keys = key[layer, 0, head // 2, block * size : min(n, (block + 1) * size)]
                    low, high = keys.min(0).values.tolist(), keys.max(0).values.tolist()
                    bounds.append(
                        sum(max(a * b, a * c) for a, b, c in zip(q, low, high, strict=True))
                    )
                quest = {*sorted(range(own + 1), key=lambda j: -bounds[j])[:count]}
                ours = kept[layer][0][head][0]
                if own in quest:
                    assert ours == quest
                    agreed += 1
                else:
                    assert ours == {own, *sorted(quest, key=lambda j: -bounds[j])[: count - 1]}
    assert 0 < agreed < 2 * 4 * steps


@pytest.mark.parametrize("heads", ["mean", "sum"])
@pytest.mark.parametrize("walk", ["product", "off"])
def test_scores_far_apart_do_not_tie(select, heads, walk):
    """In the first layer, R is W, whose entries are below the smallest float32."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 2, 80, 8, generator=generator) * 9 for _ in range(2))
    system = SketchWalk(block_size=4, top_k_blocks=6, heads=heads, walk=walk, sketch_dim=None)
    ((_, _, walks, kept),) = select(Method(system), [80], query, key, [80])
    both = (x[:, 0].double().numpy() for x in (query, key))
    (expected,) = reference_walk(system, *both, False, np.eye(8))
    assert (walks[0][0].tril() == 0).sum() > 20 * 19 / 2
    for row in range(20):
        assert kept[0][0][row] == kept_blocks(system, expected[row, : row + 1], 80, False)


def test_products_of_many_layers_do_not_underflow(select):
    torch.manual_seed(0)
    query, key = torch.randn(2, 40, 1, 2, 512, 8)
    system = SketchWalk(block_size=8, heads="sum")
    ((_, scores, _, _),) = select(Method(system), [512], query, key, [512])
    torch.testing.assert_close(scores[-1].sum(-1), torch.ones(1, 64))


def test_walk_reaches_a_block_through_another(select):
    """Layer 0 leads from block 2 to block 1, layer 1 from block 1 to block 0."""
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
    # Without the walk, layer 1 scores all three blocks alike.
    assert len(alone[1][0, 2].unique()) == 1


@pytest.mark.parametrize("memory", ["full", "sparse"])
@pytest.mark.parametrize("walk", ["product", "damped", "off"])
@pytest.mark.parametrize("preset", ["paper", "official", "box"])
def test_later_blocks_do_not_affect_earlier_rows(check_future, preset, walk, memory):
    # At d / 100, heads of 8 dimensions score all blocks almost alike.
    variant = {"walk": walk, "walk_memory": memory, "dense_last_rows": 2, "score_scale": 1.28}
    check_future(Method(SketchWalk(**FEW_BLOCKS[preset] | variant, block_size=4)))
