import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batch_changes import assert_state_follows, every_batch_change
from support.seer_reference import SIZE, GateSpy, follows_rule, reference_gate
from support.tiny_models import generate, prompts, run, tiny
from transformers import DynamicCache

from needlework import Seer, apply
from needlework.attention.methods import seer
from needlework.attention.seer.gates import Gates

pytestmark = pytest.mark.slow

LAYERS = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small models with gates of two widths, the head dimension (8) and 6, for blocks of 4."""
    by_width = {}
    for family, kv_heads in (("llama", 2), ("qwen3", 4)):
        model = tiny(family, {"num_hidden_layers": LAYERS, "num_key_value_heads": kv_heads})
        for gate_dim in (8, 6):
            folder = tmp_path_factory.mktemp("gates")
            torch.manual_seed(gate_dim)
            gates = Gates.new(model, block_size=SIZE, gate_dim=gate_dim)
            for parameter in gates.parameters():
                # Sharper, so that thresholds keep some blocks and drop some.
                parameter.data.mul_(2)
            gates.save(folder)
            by_width[family, gate_dim] = model, str(folder)
    return by_width


@pytest.fixture(scope="module")
def llama(models):
    return models["llama", 8][0]


FORMS = {
    "threshold": {"threshold": 0.2, "decode_threshold": 0.2},
    "ratio": {"nz_ratio": 0.75, "token_budget": 8},
    "count": {"density": 0.4, "dense_last_rows": 0},
    "topk": {"top_k_blocks": 3, "token_budget": 4, "dense_last_rows": 1},
    "prefill": {"density": 0.4, "stages": "prefill"},
    "decode": {"density": 0.4, "stages": "decode"},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def system(models):
    def of(form, family="llama", gate_dim=6, **others):
        return Seer(gates=models[family, gate_dim][1], block_size=SIZE, **form, **others)

    return of


@pytest.mark.parametrize(("family", "gate_dim"), [("llama", 8), ("llama", 6), ("qwen3", 8)])
@every_form
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    cut=st.lists(st.integers(1, 23), max_size=2),
    decoded=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=12)
def test_choices_match_the_reference(
    models, system, form, family, gate_dim, lengths, cut, decoded, seed
):
    """Prefill in chunks of whole blocks, then decode."""
    model, folder = models[family, gate_dim]
    system, inputs = system(form, family, gate_dim), prompts(lengths, seed)
    total = max(lengths)
    prompt = total - min(decoded, total - 1)
    starts = [total - length for length in lengths]
    whole = {c for c in cut if c < prompt and all(max(0, c - s) % SIZE == 0 for s in starts)}
    ends = [*sorted(whole), *range(prompt, total + 1)]
    forwards = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    with apply(model, system) as handle:
        handle.prompt_tokens = prompt
        spy = GateSpy(handle)
        run(model, inputs["input_ids"], forwards, inputs["attention_mask"])
        spy.remove()
    gates = Gates.open(folder, model)
    assert len(spy.choices) == LAYERS * len(forwards)
    for i, (layer, blocks, kept) in enumerate(spy.choices):
        start, end = ([0, *ends])[i // LAYERS : i // LAYERS + 2]
        is_decode = start >= max(1, prompt) and end == start + 1
        if system.is_dense("decode" if is_decode else "prefill"):
            assert kept is None
            continue
        for b, length in enumerate(lengths):
            first = total - length
            if first >= end:
                continue
            query = spy.of(layer, "q", b, first)[:, : end - first]
            key = spy.of(layer, "k", b, first)[:, : end - first]
            in_prompt = -(-(max(prompt, end) - first) // SIZE)
            assert len(kept[b]) == (len(key) if is_decode else len(query))
            for row in range(max(0, start - first) // SIZE, -(-(end - first) // SIZE)):
                gate = reference_gate(gates, layer, query, key, row, is_decode)
                for head, shares in gate.items():
                    kept_blocks = kept[b][head][row - blocks.begin[b]]
                    assert follows_rule(kept_blocks, shares, row, in_prompt, system, is_decode)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_keeping_all_blocks_equals_stock_attention(models, system, family):
    model, inputs = models[family, 6][0], prompts([67, 50])
    real = inputs["attention_mask"].bool()
    stock = run(model, inputs["input_ids"], [67], inputs["attention_mask"])
    stock_tokens, stock_logits = generate(model, inputs)
    for form in ({"density": 1.0}, {"threshold": 0.0, "decode_threshold": 0.0}):
        with apply(model, system(form, family)) as handle:
            result = run(model, inputs["input_ids"], [32, 16, 19], inputs["attention_mask"])
            tokens, logits = generate(model, inputs)
            assert handle.density().prefill == handle.density().decode == 1
        torch.testing.assert_close(result[real], stock[real], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, stock_logits, rtol=0, atol=1e-5)
        assert torch.equal(tokens, stock_tokens)


@every_form
def test_skipped_blocks_change_logits_and_removal_restores_them(llama, system, form):
    ids = prompts([67])["input_ids"]
    stock, implementation = run(llama, ids, [60, *[1] * 7]), llama.config._attn_implementation
    with apply(llama, system(form)):
        changed = run(llama, ids, [60, *[1] * 7])
    assert (changed - stock).abs().max() > 1e-2
    assert torch.equal(run(llama, ids, [60, *[1] * 7]), stock)
    assert llama.config._attn_implementation == implementation
    assert not any(module._forward_pre_hooks for module in llama.modules())


@every_form
def test_dense_stages_equal_stock_attention(llama, system, form):
    ids = prompts([67])["input_ids"]
    stock = run(llama, ids, [60, *[1] * 7])
    with apply(llama, system(form)) as handle:
        result = run(llama, ids, [60, *[1] * 7])
        density = handle.density()
    is_stock = [torch.equal(result[:, :60], stock[:, :60]), density.decode == 1]
    assert is_stock == [form.get("stages") == stage for stage in ("decode", "prefill")]
    if form.get("stages") == "decode":
        assert density.prefill == 1


@every_form
def test_chunks_of_whole_blocks_equal_one_pass(llama, system, form):
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
def test_padded_batch_equals_its_rows_alone(llama, system, form):
    """Generation crosses a block boundary in every row."""
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
def test_later_blocks_do_not_affect_earlier_rows(llama, system, form):
    ids = prompts([80])["input_ids"]
    other = ids.clone()
    other[:, 48:] = prompts([80], seed=1)["input_ids"][:, 48:]
    with apply(llama, system(form)), torch.inference_mode():
        result, changed = llama(input_ids=ids).logits, llama(input_ids=other).logits
    torch.testing.assert_close(changed[:, :48], result[:, :48], rtol=0, atol=1e-5)
    assert not torch.allclose(changed[:, 48:], result[:, 48:])


@pytest.mark.parametrize("form", [FORMS["count"], FORMS["prefill"], FORMS["decode"]])
def test_second_prefill_pools_decoded_tokens(llama, system, form):
    """After sparse or dense decode."""
    ids = prompts([64])["input_ids"]
    of_all = system({**form, "dense_last_rows": 0})
    with apply(llama, of_all) as handle:
        first = GateSpy(handle)
        run(llama, ids, [32, *[1] * 12, 20])
        first.remove()
    last = [kept for _, blocks, kept in first.choices if blocks.mask.length == 20]
    if of_all.is_dense("prefill"):
        assert last == [None] * LAYERS
        return
    gates = Gates.open(of_all.gates, llama)
    for layer, kept in enumerate(last):
        query, key = (first.of(layer, name, 0, 0) for name in ("q", "k"))
        for row in range(11, 16):
            gate = reference_gate(gates, layer, query, key, row, is_decode=False)
            for head, shares in gate.items():
                assert follows_rule(kept[0][head][row - 11], shares, row, 16, of_all, False)


@every_batch_change
def test_state_follows_batch_changes_of_the_cache(llama, system, change, rows):
    assert_state_follows(llama, system(FORMS["count"]), change, rows)


@every_form
def test_cropped_tokens_have_no_effect(llama, system, form):
    ids, wrong = prompts([75])["input_ids"], prompts([75], seed=1)["input_ids"]
    cache = DynamicCache(config=llama.config)
    with apply(llama, system(form)):
        whole = run(llama, ids, [65, 1, 4, 1, 4])
        run(llama, ids[:, :65], [65], cache=cache)
        run(llama, wrong[:, 65:68], [1, 2], cache=cache)
        cache.crop(-3)
        result = run(llama, ids[:, 65:], [1, 4, 1, 4], cache=cache)
    torch.testing.assert_close(result, whole[:, 65:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", [FORMS["threshold"], FORMS["count"]])
def test_masked_tokens_have_no_effect(llama, system, form):
    """Masked tokens inside and before the text do not enter pools, not even as zeros."""
    ids, first = prompts([67])["input_ids"], 3
    mask = torch.ones_like(ids)
    mask[:, [0, 1, 2, 21, 22, 23, 40, 58]] = 0
    system = system({**form, "dense_last_rows": 0})
    with apply(llama, system) as handle:
        spy = GateSpy(handle)
        run(llama, ids, [66, 1], mask)
        spy.remove()
    gates, real = Gates.open(system.gates, llama), mask[0, first:].bool().numpy()
    for layer, blocks, kept in spy.choices:
        n, is_decode = blocks.mask.total - first, blocks.mask.start > 0
        query, key = (spy.of(layer, name, 0, first)[:, :n] for name in ("q", "k"))
        for row in range(blocks.begin[0], 16):
            gate = reference_gate(gates, layer, query, key, row, is_decode, real[:n])
            for head, shares in gate.items():
                kept_blocks = kept[0][head][row - blocks.begin[0]]
                assert follows_rule(kept_blocks, shares, row, 16, system, is_decode)


@every_form
def test_computing_in_parts_gives_the_same_logits(llama, system, monkeypatch, form):
    inputs = prompts([67, 50])
    with apply(llama, system(form)):
        whole = run(llama, inputs["input_ids"], [62, 1, 4], inputs["attention_mask"])
        monkeypatch.setattr(seer, "NUMBERS_AT_ONCE", 1)
        parts = run(llama, inputs["input_ids"], [62, 1, 4], inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(parts[real], whole[real], rtol=0, atol=1e-5)


@every_form
def test_right_padding_has_no_effect(llama, system, form):
    ids, more = prompts([67])["input_ids"], 9
    padded = torch.cat([ids, torch.zeros(1, more, dtype=ids.dtype)], 1)
    mask = (torch.arange(67 + more) < 67).int()[None]
    with apply(llama, system(form)):
        alone = run(llama, ids, [67])
        result = run(llama, padded, [67 + more], mask)[:, :67]
    torch.testing.assert_close(result, alone, rtol=0, atol=1e-5)


def test_float64_models_run(tmp_path):
    model = tiny("llama").double()
    Gates.new(model, block_size=8).save(tmp_path)
    with apply(model, Seer(gates=str(tmp_path), block_size=8, density=0.5)) as handle:
        assert run(model, prompts([67])["input_ids"], [66, 1]).isfinite().all()
        assert handle.density().prefill < 1


def test_first_layers_can_stay_dense(llama, system):
    with apply(llama, system(FORMS["count"], dense_layers=1)) as handle:
        run(llama, prompts([67])["input_ids"], [60, *[1] * 7])
        layers = handle.density().layers
        assert {layer.layer for layer in layers if layer.is_sparse} == {1}


def test_density_is_averaged_over_heads(llama, system):
    with apply(llama, system(FORMS["threshold"])) as handle:
        spy = GateSpy(handle)
        run(llama, prompts([62])["input_ids"], [60, 1, 1])
        spy.remove()
        density = handle.density()
    pairs = {"prefill": [], "decode": []}
    for _, blocks, kept in spy.choices:
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


def test_bfloat16_models_generate(models, tmp_path):
    model = tiny("qwen3").to(torch.bfloat16)
    Gates.new(model, block_size=8).save(tmp_path)
    with apply(model, Seer(gates=str(tmp_path), block_size=8, density=0.5)) as handle:
        tokens, logits = generate(model, prompts([67, 50]))
        assert logits.isfinite().all()
        assert handle.density().decode < 1
    assert tokens.shape == (2, 12)


def test_gates_that_do_not_match_are_refused(llama, models, tmp_path):
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
    with apply(llama, Seer(gates=str(tmp_path), block_size=SIZE, stages="prefill")):
        run(llama, prompts([20])["input_ids"], [19, 1])
