"""Segments, cache, gates and dtypes of Infini models."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.infini_models import (
    ACTIVATIONS,
    VOCABULARY,
    infini_model,
    llama,
    tokens,
)
from transformers import (
    DynamicCache,
)

from needlework.attention.apply import apply
from needlework.attention.infini.cache import InfiniCache
from needlework.config.attention.infini import Infini
from needlework.config.attention.random import Random
from needlework.models.convert import convert

pytestmark = pytest.mark.slow


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 19), max_size=5),
    segment_length=st.integers(1, 8),
    update=st.sampled_from(["linear", "delta"]),
    alignment=st.sampled_from(["start", "end"]),
)
def test_padded_rows_in_chunks_match_single_rows_in_one_pass(
    lengths, cuts, segment_length, update, alignment
):
    """Batching, left padding, chunked prefill and decoding do not change a row's logits."""
    model = infini_model(segment_length=segment_length, update=update)
    columns = max(lengths)
    ids = tokens(len(lengths), columns)
    mask = torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]
    middle = segment_length // 2 if alignment == "end" else 0
    offset = torch.tensor([(middle - n) % segment_length for n in lengths])
    if alignment == "start":
        offset.zero_()
    cache = InfiniCache(model.config, offset)
    edges = sorted({0, columns, *(cut for cut in cuts if cut < columns)})
    with torch.no_grad():
        pieces = [
            model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
            for a, b in itertools.pairwise(edges)
        ]
        chunked = torch.cat(pieces, dim=1)
        for row, length in enumerate(lengths):
            alone = model(
                ids[row : row + 1, -length:],
                use_cache=False,
                segment_offset=offset[row : row + 1],
            ).logits[0]
            torch.testing.assert_close(chunked[row, -length:], alone, rtol=1e-9, atol=1e-9)


def test_end_alignment_ends_the_prompt_in_the_middle_of_a_segment():
    model = infini_model(segment_length=8, segment_alignment="end")
    for length in range(1, 20):
        cache = model(tokens(1, length), use_cache=True).past_key_values
        assert (int(cache.offset) + length) % 8 == 4
        assert int((cache.layers[0].keys.abs().sum((0, 1, 3)) > 0).sum()) == min(length, 4)


def test_without_a_cache_segments_start_at_the_first_token():
    model = infini_model(segment_length=8, segment_alignment="end")
    ids = tokens(1, 13)
    with torch.no_grad():
        got = model(ids, use_cache=False).logits
        start = model(ids, use_cache=False, segment_offset=torch.tensor([0])).logits
    assert torch.equal(got, start)


def test_training_offsets_end_prompts_in_the_middle_half_of_a_segment():
    lengths = torch.arange(1, 200)
    generator = torch.Generator().manual_seed(0)
    model = infini_model(segment_length=8, segment_alignment="end")
    ends = (lengths + model.training_offset(lengths, generator)) % 8
    assert set(ends.tolist()) == {2, 3, 4, 5, 6}
    assert model.training_offset(lengths, generator, "start") is None
    start = infini_model(segment_length=8, segment_alignment="start")
    assert start.training_offset(lengths, generator) is None
    ends = (lengths + start.training_offset(lengths, generator, "end")) % 8
    assert set(ends.tolist()) == {2, 3, 4, 5, 6}
    offsets = start.training_offset(torch.full((200,), 5), generator, "random")
    assert set(offsets.tolist()) == set(range(8))


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize("changes", [{}, {"gate_empty_memory": True}, {"turn_on_memory": False}])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_later_tokens_do_not_affect_earlier_ones(update, changes, activation):
    model = infini_model(segment_length=4, update=update, balance_act_type=activation, **changes)
    ids = tokens(1, 14)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits[0]
        for changed in range(1, 14):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 7) % (VOCABULARY - 1) + 1
            after = model(other, use_cache=False).logits[0]
            assert torch.equal(before[:changed], after[:changed])
            assert not torch.equal(before[changed:], after[changed:])
            reached = (before != after).any(-1)
            # Local attention ends with the segment; memory reaches the end of the text.
            assert reached[-1] or not changes.get("turn_on_memory", True)


def test_cache_size_does_not_depend_on_the_length():
    model = infini_model(torch.float32, segment_length=8)

    def cache_bytes(length):
        cache = model(tokens(1, length), use_cache=True).past_key_values
        return sum(
            x.untyped_storage().nbytes()
            for layer in cache.layers
            for x in (layer.keys, layer.values, layer.memory, layer.norm)
        )

    expected = 2 * (2 * 2 * 8 * 4 + 2 * 4 * 4 + 2 * 4) * 4
    assert [cache_bytes(n) for n in (1, 8, 9, 100)] == [expected] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_memory_of_large_values_stays_finite_in_half_precision(dtype):
    """z of 100 segments is far beyond float16's 65,504; float32 holds it."""
    model = infini_model(torch.float32, segment_length=32, balance_act_type="sigmoid").to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.mul_(100)
            layer.self_attn.v_proj.weight.mul_(100)
        output = model(tokens(1, 3201), use_cache=True)
    state = output.past_key_values.layers[0]
    assert state.keys.dtype == state.values.dtype == output.logits.dtype == dtype
    assert state.memory.dtype == state.norm.dtype == torch.float32
    assert state.norm.max() > 3 * torch.finfo(torch.float16).max
    assert output.logits.isfinite().all()


def test_converting_to_half_precision_keeps_gates_float32():
    model = infini_model(torch.float32)
    betas = [gate.balance_factors.clone() for gate in model.gates]
    for change in (model.half, model.bfloat16, lambda: model.to(torch.float16), model.float):
        change()
        for gate, beta in zip(model.gates, betas, strict=True):
            assert gate.balance_factors.dtype == torch.float32
            assert torch.equal(gate.balance_factors, beta)


def test_autocast_keeps_the_memory_float32():
    model = infini_model(torch.float32, segment_length=16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = model(tokens(1, 16), use_cache=True).past_key_values.layers[0]
    # The segment just finished is still in the slots that the next one will overwrite.
    keys, values = (x.double() for x in (state.keys, state.values))
    key_sigma = torch.nn.functional.elu(keys) + 1
    expected = key_sigma.transpose(2, 3) @ values
    torch.testing.assert_close(state.memory.double(), expected, rtol=1e-5, atol=1e-5)


def test_absolute_positions_do_not_matter():
    model = infini_model(torch.float32, segment_length=8)
    ids, positions = tokens(1, 30), torch.arange(30)[None]
    with torch.no_grad():
        from_zero = model(ids, position_ids=positions, use_cache=False).logits
        far_away = model(ids, position_ids=positions + 10_000_000, use_cache=False).logits
    assert torch.equal(from_zero, far_away)


def test_dynamic_rope_does_not_change_with_earlier_texts():
    """Dynamic RoPE adapts to the longest text seen, which never exceeds a segment here."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    base = llama(torch.float32, rope_parameters=rope, max_position_embeddings=8)
    model = convert(base, Infini(segment_length=16))
    ids = tokens(1, 30)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        model(tokens(1, 300), use_cache=False)
        assert torch.equal(model(ids, use_cache=False).logits, before)


def test_gates_start_at_the_configured_values(tmp_path):
    base = llama(torch.float32)
    zeros = convert(base, Infini()).gates[0]
    assert zeros.balance_factors.eq(0).all()
    assert zeros().eq(0.5).all()
    constant = Infini(balance_init_type="constant", balance_init_value=-2.0)
    assert convert(base, constant).gates[1].balance_factors.eq(-2).all()
    by_layer = convert(base, Infini(balance_init_type="constant", balance_init_value=[-1.0, 2.0]))
    assert [gate.balance_factors[0].item() for gate in by_layer.gates] == [-1.0, 2.0]
    with pytest.raises(ValueError, match="3 values for a model of 2 layers"):
        convert(base, Infini(balance_init_type="constant", balance_init_value=[0.0, 0.0, 0.0]))
    random = convert(base, Infini(balance_init_type="randn"))
    assert len({b for g in random.gates for b in g.balance_factors.tolist()}) == 12
    base.save_pretrained(tmp_path)
    config = convert(base, constant).config
    opened = type(random).from_pretrained(tmp_path, config=config)
    assert opened.gates[0].balance_factors.eq(-2).all()
    assert torch.equal(opened.lm_head.weight, base.lm_head.weight)


def test_conversion_does_not_change_the_base_model():
    base = llama()
    ids = tokens(1, 9)
    with torch.no_grad():
        before = base(ids).logits
        model = convert(base, Infini(segment_length=4))
        model.lm_head.weight.zero_()
        assert torch.equal(base(ids).logits, before)
    assert base.config.model_type == "llama"


def test_unsupported_uses_are_clear_errors():
    model = infini_model(segment_length=4)
    with pytest.raises(ValueError, match="needs InfiniCache"):
        model(tokens(1, 3), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="Infini-attention is part of this model"):
        model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="model: has infini as its own attention"):
        apply(model, Random(dense_layers=0))
    with pytest.raises(ValueError, match="needs a padding mask of shape"):
        model(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3))
