import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rope_reference import rotate_vector
from support.tiny_models import generate, prompts, run, tiny
from transformers import DynamicCache

from needlework import Seer, apply
from needlework.attention.blocks import choose
from needlework.attention.methods import seer
from needlework.attention.seer.gates import Gates

SIZE, LAYERS = 4, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small models with gates of two widths, that of a head (8) and another, in blocks of 4."""
    found = {}
    for family, kv_heads in (("llama", 2), ("qwen3", 4)):
        model = tiny(family, {"num_hidden_layers": LAYERS, "num_key_value_heads": kv_heads})
        for gate_dim in (8, 6):
            folder = tmp_path_factory.mktemp("gates")
            torch.manual_seed(gate_dim)
            gates = Gates.new(model, block_size=SIZE, gate_dim=gate_dim)
            for parameter in gates.parameters():
                # Sharp enough for thresholds to keep some and leave some.
                parameter.data.mul_(2)
            gates.save(folder)
            found[family, gate_dim] = model, str(folder)
    return found


@pytest.fixture(scope="module")
def llama(models):
    return models["llama", 8][0]


FORMS = {
    "threshold": {"threshold": 0.2, "decode_threshold": 0.2},
    "ratio": {"nz_ratio": 0.75, "token_budget": 8},
    "count": {"density": 0.4, "dense_last_rows": 0},
    "topk": {"top_k_blocks": 3, "token_budget": 4, "dense_last_rows": 1},
    "prefill": {"density": 0.4, "skip_decode": True},
    "decode": {"density": 0.4, "skip_prefill": True},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def system(models):
    def of(form, family="llama", gate_dim=6, **others):
        return Seer(gates=models[family, gate_dim][1], block_size=SIZE, **form, **others)

    return of


class Overheard:
    """Queries and keys of a model before RoPE, from its projections; what its gates chose."""

    def __init__(self, handle):
        self.handle, self.plain, self.found = handle, {}, []
        scores = handle.selector.scores
        self.hooks = []
        for layer, decoder in enumerate(handle.model.model.layers):
            attention = decoder.self_attn
            for name in ("q", "k"):
                module = getattr(attention, f"{name}_norm", getattr(attention, f"{name}_proj"))
                self.hooks.append(
                    module.register_forward_hook(
                        lambda module, args, out, at=(layer, name): self.plain.setdefault(
                            at, []
                        ).append(out.unflatten(1, (-1, 8)) if out.ndim == 2 else out)
                    )
                )

        def spy(layer, query, key, forward):
            found = scores(layer, query, key, forward)
            kept = None
            if found is not None:
                chosen = choose(found, forward.blocks).tolist()
                kept = [[[{*row} - {-1} for row in rows] for rows in heads] for heads in chosen]
            self.found.append((layer, forward.blocks, kept))
            return found

        handle.selector.scores = spy

    def of(self, layer, name, b, first):
        """[heads, tokens, 8] of row b of the batch from its first real token on, float64."""
        parts = [
            part.reshape(*part.shape[:2], -1, 8)[b].transpose(0, 1)
            for part in self.plain[layer, name]
        ]
        return torch.cat(parts, 1)[:, first:].double().numpy()

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def pooled(keys):
    """[tokens, d] -> 3 d numbers."""
    return np.array(
        [pool(column) for pool in (max, min, np.mean) for column in keys.T], dtype=np.float64
    )


def reference_gate(gates, layer, query, key, row, is_decode, real=None):
    """The gate's softmax for one row of blocks, {head: one number a block up to the row}.

    query [heads, n, d] and key [kv heads, n, d] of all tokens so far, of which `real` [n] count.
    Decoding asks with the last.
    """
    heads, n, d = query.shape
    real = np.ones(n, dtype=bool) if real is None else real
    kv, g, found = len(key), gates.description.gate_dim, {}
    gate = (gates.decode if is_decode else gates.prefill)[str(layer)]

    def its(block):
        return [t for t in range(block * SIZE, min((block + 1) * SIZE, n)) if real[t]]

    for head in range(kv if is_decode else heads):
        of_kv = head if is_decode else head // (heads // kv)
        if is_decode:
            q, at = np.zeros(g), n - 1
            for i in range(heads // kv):
                q += query[head * (heads // kv) + i, -1] @ gate.query[head, i].double().numpy()
        else:
            q, at = query[head, its(row)].mean(0), row * SIZE
            if g != d:
                q = q @ gate.query[head].double().numpy()
        logits = []
        for j in range(row + 1):
            pools = pooled(key[of_kv, its(j)])
            k = pools @ gate.key[of_kv if is_decode or g != d else head].double().numpy()
            logits.append(rotate_vector(q, at) @ rotate_vector(k, j * SIZE) / math.sqrt(g))
        weights = [math.exp(x - max(logits)) for x in logits]
        found[head] = [x / sum(weights) for x in weights]
    return found


def is_right(kept, gate, row, blocks_of_prompt, system, is_decode):
    """Whether the blocks kept are those of the form; equal to rounding, either block may be."""
    threshold = system.decode_threshold if is_decode else system.threshold
    if not is_decode and row >= blocks_of_prompt - system.dense_last_rows:
        return kept == {*range(row + 1)}
    if threshold is not None:
        wanted = {j for j in range(row + 1) if gate[j] > threshold}
        doubtful = {j for j in range(row + 1) if abs(gate[j] - threshold) < 1e-5}
        return kept | doubtful == wanted | {row} | doubtful
    if is_decode and system.token_budget is not None:
        count, candidates = system.token_budget // SIZE, row + 1
    elif not is_decode and system.nz_ratio is not None:
        share = 1 - math.sqrt(1 - system.nz_ratio)
        count, candidates = max(1, math.floor(share * blocks_of_prompt)), row + 1
    elif system.density is not None:
        # The own block is one of them.
        count, candidates = math.ceil(system.density * (row + 1) - 1e-9) - 1, row
    else:
        count, candidates = system.top_k_blocks - 1, row
    best = sorted(range(candidates), key=lambda j: -gate[j])[:count]
    wanted = {*best, row}
    if kept == wanted:
        return True
    return len(kept) == len(wanted) and all(
        abs(gate[i] - min(gate[j] for j in best)) < 1e-6 for i in kept ^ wanted
    )


@pytest.mark.parametrize(("family", "gate_dim"), [("llama", 8), ("llama", 6), ("qwen3", 8)])
@every_form
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    cut=st.lists(st.integers(1, 23), max_size=2),
    decoded=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=12)
def test_choices_are_those_of_the_formulae(
    models, system, form, family, gate_dim, lengths, cut, decoded, seed
):
    """A prefill cut anywhere, then decode; each forward's rows of blocks against plain loops."""
    model, folder = models[family, gate_dim]
    system, inputs = system(form, family, gate_dim), prompts(lengths, seed)
    total = max(lengths)
    prompt = total - min(decoded, total - 1)
    ends = [*sorted({c for c in cut if c < prompt}), *range(prompt, total + 1)]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    with apply(model, system) as handle:
        handle.prompt_tokens = prompt
        heard = Overheard(handle)
        run(model, inputs["input_ids"], forwards, inputs["attention_mask"])
        heard.remove()
    gates = Gates.open(folder, model)
    assert len(heard.found) == LAYERS * len(forwards)
    for i, (layer, blocks, kept) in enumerate(heard.found):
        start, end = ([0, *ends])[i // LAYERS : i // LAYERS + 2]
        is_decode = start >= max(1, prompt) and end == start + 1
        if system.skip_decode if is_decode else system.skip_prefill:
            assert kept is None
            continue
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            query = heard.of(layer, "q", b, first)[:, : end - first]
            key = heard.of(layer, "k", b, first)[:, : end - first]
            in_prompt = -(-(max(prompt, end) - first) // SIZE)
            assert len(kept[b]) == (len(key) if is_decode else len(query))
            for row in range(max(0, start - first) // SIZE, -(-(end - first) // SIZE)):
                gate = reference_gate(gates, layer, query, key, row, is_decode)
                for head, shares in gate.items():
                    its = kept[b][head][row - blocks.begin[b]]
                    assert is_right(its, shares, row, in_prompt, system, is_decode)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_all_blocks_kept_is_stock_attention(models, system, family):
    model, inputs = models[family, 6][0], prompts([67, 50])
    real = inputs["attention_mask"].bool()
    stock = run(model, inputs["input_ids"], [67], inputs["attention_mask"])
    stock_tokens, stock_logits = generate(model, inputs)
    for form in ({"density": 1.0}, {"threshold": 0.0, "decode_threshold": 0.0}):
        with apply(model, system(form, family)) as handle:
            found = run(model, inputs["input_ids"], [32, 16, 19], inputs["attention_mask"])
            tokens, logits = generate(model, inputs)
            assert handle.density().prefill == handle.density().decode == 1
        torch.testing.assert_close(found[real], stock[real], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, stock_logits, rtol=0, atol=1e-5)
        assert torch.equal(tokens, stock_tokens)


@every_form
def test_blocks_left_out_change_the_answer_and_removal_restores_it(llama, system, form):
    ids = prompts([67])["input_ids"]
    stock, implementation = run(llama, ids, [60, *[1] * 7]), llama.config._attn_implementation
    with apply(llama, system(form)):
        changed = run(llama, ids, [60, *[1] * 7])
    assert (changed - stock).abs().max() > 1e-2
    assert torch.equal(run(llama, ids, [60, *[1] * 7]), stock)
    assert llama.config._attn_implementation == implementation
    assert not any(module._forward_pre_hooks for module in llama.modules())


@every_form
def test_dense_stages_are_stock_attention(llama, system, form):
    ids = prompts([67])["input_ids"]
    stock = run(llama, ids, [60, *[1] * 7])
    with apply(llama, system(form)) as handle:
        found = run(llama, ids, [60, *[1] * 7])
        density = handle.density()
    is_stock = [torch.equal(found[:, :60], stock[:, :60]), density.decode == 1]
    assert is_stock == ["skip_prefill" in form, "skip_decode" in form]
    if "skip_prefill" in form:
        assert density.prefill == 1


@every_form
def test_chunks_of_whole_blocks_equal_one_shot(llama, system, form):
    ids = prompts([75])["input_ids"]
    with apply(llama, system(form)) as handle:
        whole = run(llama, ids, [64, *[1] * 11])
        density = handle.density()
        handle.reset()
        handle.prompt_tokens = 64
        chunked = run(llama, ids, [8, 40, 16, *[1] * 11])
        assert handle.density() == density
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


@every_form
def test_a_padded_batch_answers_as_its_rows_alone(llama, system, form):
    """Generation runs over the end of a block in every row."""
    lengths = [67, 50, 41]
    inputs = prompts(lengths)
    with apply(llama, system(form)):
        tokens, logits = generate(llama, inputs)
        for row, length in enumerate(lengths):
            alone = {name: x[row : row + 1, -length:] for name, x in inputs.items()}
            its_tokens, its_logits = generate(llama, alone)
            assert torch.equal(its_tokens[0], tokens[row])
            torch.testing.assert_close(its_logits[0], logits[row], rtol=0, atol=1e-4)


@every_form
def test_later_blocks_never_reach_earlier_ones(llama, system, form):
    ids = prompts([80])["input_ids"]
    other = ids.clone()
    other[:, 48:] = prompts([80], seed=1)["input_ids"][:, 48:]
    with apply(llama, system(form)), torch.inference_mode():
        found, changed = llama(input_ids=ids).logits, llama(input_ids=other).logits
    torch.testing.assert_close(changed[:, :48], found[:, :48], rtol=0, atol=1e-5)
    assert not torch.allclose(changed[:, 48:], found[:, 48:])


@pytest.mark.parametrize("form", [FORMS["count"], FORMS["prefill"], FORMS["decode"]])
def test_a_second_turn_is_a_prefill_of_all(llama, system, form):
    """Tokens that decoded, sparse or dense, are pooled for the prefill that follows them."""
    ids = prompts([64])["input_ids"]
    of_all = system({**form, "dense_last_rows": 0})
    with apply(llama, of_all) as handle:
        first = Overheard(handle)
        run(llama, ids, [32, *[1] * 12, 20])
        first.remove()
    last = [kept for _, blocks, kept in first.found if blocks.mask.length == 20]
    if of_all.skip_prefill:
        assert last == [None] * LAYERS
        return
    gates = Gates.open(of_all.gates, llama)
    for layer, kept in enumerate(last):
        query, key = (first.of(layer, name, 0, 0) for name in ("q", "k"))
        for row in range(11, 16):
            gate = reference_gate(gates, layer, query, key, row, is_decode=False)
            for head, shares in gate.items():
                assert is_right(kept[0][head][row - 11], shares, row, 16, of_all, False)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_state_follows_the_cache_through_changes_of_batch(llama, system, change, rows):
    inputs = prompts([70, 60])
    more = prompts([10, 10], seed=1)["input_ids"]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    with apply(llama, system(FORMS["count"])):
        whole = run(llama, torch.cat([inputs["input_ids"], more], 1), [70, *[1] * 10], mask)
        cache = DynamicCache(config=llama.config)
        run(llama, inputs["input_ids"], [70], inputs["attention_mask"], cache)
        change(cache)
        found = run(llama, more[rows], [1] * 10, mask[rows], cache)
    torch.testing.assert_close(found, whole[rows, 70:], rtol=0, atol=1e-4)


@every_form
def test_cropped_tokens_leave_no_trace(llama, system, form):
    ids, wrong = prompts([75])["input_ids"], prompts([75], seed=1)["input_ids"]
    cache = DynamicCache(config=llama.config)
    with apply(llama, system(form)):
        whole = run(llama, ids, [65, 1, 4, 1, 4])
        run(llama, ids[:, :65], [65], cache=cache)
        run(llama, wrong[:, 65:68], [1, 2], cache=cache)
        cache.crop(-3)
        found = run(llama, ids[:, 65:], [1, 4, 1, 4], cache=cache)
    torch.testing.assert_close(found, whole[:, 65:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", [FORMS["threshold"], FORMS["count"]])
def test_tokens_that_are_masked_count_nowhere(llama, system, form):
    """Within a text as well as before it: neither as they are, nor as zeros in a pool."""
    ids, first = prompts([67])["input_ids"], 3
    mask = torch.ones_like(ids)
    mask[:, [0, 1, 2, 21, 22, 23, 40, 58]] = 0
    system = system({**form, "dense_last_rows": 0})
    with apply(llama, system) as handle:
        heard = Overheard(handle)
        run(llama, ids, [66, 1], mask)
        heard.remove()
    gates, real = Gates.open(system.gates, llama), mask[0, first:].bool().numpy()
    for layer, blocks, kept in heard.found:
        n, is_decode = blocks.mask.total - first, blocks.mask.start > 0
        query, key = (heard.of(layer, name, 0, first)[:, :n] for name in ("q", "k"))
        for row in range(blocks.begin[0], 16):
            gate = reference_gate(gates, layer, query, key, row, is_decode, real[:n])
            for head, shares in gate.items():
                its = kept[0][head][row - blocks.begin[0]]
                assert is_right(its, shares, row, 16, system, is_decode)


@every_form
def test_parts_are_the_whole(llama, system, monkeypatch, form):
    inputs = prompts([67, 50])
    with apply(llama, system(form)):
        whole = run(llama, inputs["input_ids"], [62, 1, 4], inputs["attention_mask"])
        monkeypatch.setattr(seer, "NUMBERS_AT_ONCE", 1)
        parts = run(llama, inputs["input_ids"], [62, 1, 4], inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(parts[real], whole[real], rtol=0, atol=1e-5)


@every_form
def test_padding_on_the_right_changes_nothing(llama, system, form):
    ids, more = prompts([67])["input_ids"], 9
    padded = torch.cat([ids, torch.zeros(1, more, dtype=ids.dtype)], 1)
    mask = (torch.arange(67 + more) < 67).int()[None]
    with apply(llama, system(form)):
        alone = run(llama, ids, [67])
        found = run(llama, padded, [67 + more], mask)[:, :67]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_float64_is_rotated_back_in_float32(tmp_path):
    model = tiny("llama").double()
    Gates.new(model, block_size=8).save(tmp_path)
    with apply(model, Seer(gates=str(tmp_path), block_size=8, density=0.5)) as handle:
        assert run(model, prompts([67])["input_ids"], [66, 1]).isfinite().all()
        assert handle.density().prefill < 1


def test_the_first_layers_may_stay_dense(llama, system):
    with apply(llama, system(FORMS["count"], dense_layers=1)) as handle:
        run(llama, prompts([67])["input_ids"], [60, *[1] * 7])
        assert {layer.layer for layer in handle.density().layers} == {1}


def test_density_is_that_of_the_mean_head(llama, system):
    with apply(llama, system(FORMS["threshold"])) as handle:
        heard = Overheard(handle)
        run(llama, prompts([62])["input_ids"], [60, 1, 1])
        heard.remove()
        density = handle.density()
    pairs = {"prefill": [], "decode": []}
    for _, blocks, kept in heard.found:
        start, end = blocks.mask.start, blocks.mask.total
        pairs["decode" if start else "prefill"].append(
            np.mean(
                [
                    sum(
                        t // SIZE in head[s // SIZE - blocks.begin[0]]
                        for s in range(start, end)
                        for t in range(s + 1)
                    )
                    for head in kept[0]
                ]
            )
        )
    assert density.prefill == pytest.approx(np.mean(pairs["prefill"]) / (60 * 61 / 2))
    assert density.decode == pytest.approx(sum(pairs["decode"]) / LAYERS / (61 + 62))
    assert 0.1 < density.prefill < 0.9


def test_half_precision_generates(models, tmp_path):
    model = tiny("qwen3").to(torch.bfloat16)
    Gates.new(model, block_size=8).save(tmp_path)
    with apply(model, Seer(gates=str(tmp_path), block_size=8, density=0.5)) as handle:
        tokens, logits = generate(model, prompts([67, 50]))
        assert logits.isfinite().all()
        assert handle.density().decode < 1
    assert tokens.shape == (2, 12)


def test_gates_that_do_not_fit_are_refused_and_leave_no_trace(llama, models, tmp_path):
    folder = models["llama", 8][1]
    Gates.new(llama, block_size=SIZE, stages=["prefill"]).save(tmp_path)
    for misfit, complaint in (
        ({"gates": folder}, "block_size: 64 does not match the gates in .*; write 4"),
        ({"gates": "nowhere"}, r"gates: nowhere has no gates\.json"),
        ({"gates": str(tmp_path), "block_size": SIZE}, "gates: .* has no gates for decode"),
        ({"gates": models["qwen3", 8][1]}, "gates: .* model_type qwen3"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            apply(llama, Seer(**misfit))
        assert "\n" not in str(error.value)
        assert not any(module._forward_pre_hooks for module in llama.modules())
    with apply(llama, Seer(gates=str(tmp_path), block_size=SIZE, skip_decode=True)):
        run(llama, prompts([20])["input_ids"], [19, 1])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"threshold": 0.1, "nz_ratio": 0.5}, "threshold: nz_ratio chooses blocks already"),
        ({"token_budget": 64, "decode_threshold": 0.1}, "token_budget chooses blocks already"),
        ({"threshold": 0.1, "skip_prefill": True}, "threshold: skip_prefill makes prefill dense"),
        ({"token_budget": 64, "skip_decode": True}, "token_budget: skip_decode makes decode dense"),
        ({"skip_prefill": True, "skip_decode": True}, "nothing is sparse"),
        ({"nz_ratio": 0.5, "token_budget": 64, "density": 0.2}, "density: both stages"),
        ({"threshold": 0.1, "skip_decode": True, "density": 0.2}, "density: both stages"),
        ({"token_budget": 63}, "63 is less than a block of 64"),
        ({"gates": ""}, "gates"),
    ],
)
def test_contradictions_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Seer(**{"gates": "mine", **given})


def test_defaults_are_as_released():
    default = Seer(gates="mine")
    assert (default.threshold, default.token_budget, default.dense_last_rows) == (0.1, 2048, 2)
    assert Seer(gates="mine", threshold=0.002).token_budget == 2048
    assert Seer(gates="mine", skip_decode=True).token_budget is None
    by_count = Seer(gates="mine", density=0.2)
    assert by_count.threshold is by_count.token_budget is None
    mixed = Seer(gates="mine", top_k_blocks=4, token_budget=128)
    assert (mixed.threshold, mixed.token_budget) == (None, 128)
    for system in (default, by_count, mixed):
        assert Seer.model_validate(system.model_dump(mode="json")) == system
