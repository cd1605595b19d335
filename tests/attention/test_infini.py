import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from needlework.attention.infini import convert
from needlework.attention.infini_cache import InfiniCache
from needlework.config.systems import Infini

VOCABULARY = 40
# transformers computes RoPE's angles and the norms in float32, whatever the model's dtype.
FLOAT32_ANGLES = {"rtol": 1e-5, "atol": 2e-5}
ACTIVATIONS = {
    "sigmoid": lambda b: 1 / (1 + math.exp(-b)),
    "hard_sigmoid": lambda b: min(max(0.2 * b + 0.5, 0.0), 1.0),
    "tanh": math.tanh,
    "abs_tanh": lambda b: abs(math.tanh(b)),
}


def shape(**changes):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **changes,
    }


def llama(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape(**changes))).to(dtype).eval()


def infini_model(dtype=torch.float64, heads=(6, 2), **parameters):
    """A small Llama with gates that differ by head and layer."""
    base = llama(dtype, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    model = convert(base, Infini(**parameters))
    for layer, gate in enumerate(model.gates):
        with torch.no_grad():
            spread = torch.linspace(-1.5, 1.5, heads[0], dtype=torch.float64)
            gate.balance_factors.copy_(spread.roll(layer))
    return model


def tokens(rows, columns, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, columns), generator=generator)


def rotated(x, position, theta=10000.0):
    """RoPE of one vector, pair by pair, as a complex rotation."""
    half = len(x) // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(half, dtype=torch.float64), position * frequencies)
    turned = torch.complex(x[:half], x[half:]) * turn
    return torch.cat([turned.real, turned.imag])


def reference_attention(q, k, v, betas, system, offset):
    """Infini-attention a token and a head at a time: q [n, H, D], k, v [n, G, D], float64."""
    n, heads, dim = q.shape
    act = ACTIVATIONS[system.balance_act_type]
    segment_of = [(t + offset) // system.segment_length for t in range(n)]
    out = torch.zeros(n, heads, dim, dtype=torch.float64)

    def sigma(x):
        scaled = system.sigma_scale * x
        return torch.where(scaled > 0, scaled + 1, scaled.exp())

    for head in range(heads):
        g = act(betas[head].item())
        kv = head // (heads // k.shape[1])
        memory = torch.zeros(dim, dim, dtype=torch.float64)
        norm = torch.zeros(dim, dtype=torch.float64)
        rows = []
        for t in range(n):
            first = segment_of.index(segment_of[t])
            if t == first and t > 0:
                written, counted = memory, norm
                for s in range(segment_of.index(segment_of[t - 1]), t):
                    key, value = sigma(k[s, kv]), v[s, kv]
                    if system.update == "delta" and norm.any():
                        value = value - (key @ memory) / (key @ norm)
                    written = written + torch.outer(key, value)
                    counted = counted + key
                memory, norm = written, counted
            logits = torch.stack(
                [rotated(q[t, head], t) @ rotated(k[s, kv], s) for s in range(first, t + 1)]
            )
            local = torch.softmax(logits / math.sqrt(dim), 0) @ v[first : t + 1, kv]
            query = sigma(q[t, head])
            if not system.turn_on_memory:
                rows.append(local)
            elif norm.any():
                rows.append(g * (query @ memory) / (query @ norm) + (1 - g) * local)
            else:
                rows.append((1 - g) * local if system.gate_empty_memory else local)
        out[:, head] = torch.stack(rows)
    return out


def reference_logits(model, ids, offset):
    """The whole model for one row, its attention replaced by the reference."""
    system = Infini(**model.config.infini)
    x = model.model.embed_tokens(ids)
    for layer in model.model.layers:
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        q, k, v = (
            projection(h).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        betas = attention.gate.balance_factors
        out = reference_attention(q, k, v, betas, system, offset)
        x = x + attention.o_proj(out.flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))


@settings(max_examples=20, deadline=None)
@given(
    columns=st.integers(1, 13),
    segment_length=st.integers(1, 7),
    shortened=st.integers(0, 6),
    update=st.sampled_from(["linear", "delta"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    heads=st.sampled_from([(6, 2), (4, 4), (3, 1)]),
    empty=st.booleans(),
    scale=st.sampled_from([1.0, 3.0]),
)
def test_logits_match_the_formulae(
    columns, segment_length, shortened, update, activation, heads, empty, scale
):
    model = infini_model(
        heads=heads,
        segment_length=segment_length,
        update=update,
        balance_act_type=activation,
        gate_empty_memory=empty,
        sigma_scale=scale,
    )
    ids = tokens(1, columns)
    offset = shortened % segment_length
    with torch.no_grad():
        got = model(ids, use_cache=False, segment_offset=torch.tensor([offset])).logits[0]
        expected = reference_logits(model, ids[0], offset)
    torch.testing.assert_close(got, expected, **FLOAT32_ANGLES)


def test_without_memory_it_is_local_attention():
    model = infini_model(segment_length=5, turn_on_memory=False)
    ids = tokens(1, 12)
    with torch.no_grad():
        got = model(ids, use_cache=False).logits[0]
        torch.testing.assert_close(got, reference_logits(model, ids[0], 0), **FLOAT32_ANGLES)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradients_flow_through_every_segment(update):
    """Gradients of the last token's loss agree with those of the reference."""
    model = infini_model(segment_length=3, update=update).train()
    ids = tokens(1, 10)
    weights = [model.model.embed_tokens.weight, model.model.layers[0].self_attn.k_proj.weight]

    def last_loss(logits):
        return logits[-1].log_softmax(-1)[0]

    got = torch.autograd.grad(last_loss(model(ids).logits[0]), weights)
    expected = torch.autograd.grad(last_loss(reference_logits(model, ids[0], 0)), weights)
    assert expected[0][ids[0, 0]].abs().max() > 1e-3
    torch.testing.assert_close(got, expected, **FLOAT32_ANGLES)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 19), max_size=5),
    segment_length=st.integers(1, 8),
    update=st.sampled_from(["linear", "delta"]),
    alignment=st.sampled_from(["start", "end"]),
)
def test_padded_rows_in_chunks_match_single_rows_in_one_go(
    lengths, cuts, segment_length, update, alignment
):
    """Batch, left padding, chunked prefill and decoding give each row its own one-shot logits."""
    model = infini_model(segment_length=segment_length, update=update)
    columns = max(lengths)
    ids = tokens(len(lengths), columns)
    mask = torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]
    middle = segment_length // 2 if alignment == "end" else 0
    offset = torch.tensor([(middle - n) % segment_length for n in lengths])
    if alignment == "start":
        offset.zero_()
    cache = InfiniCache(2, segment_length, offset)
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


@pytest.mark.parametrize("alignment", ["start", "end"])
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_generation_is_the_same_with_and_without_cache(alignment, update):
    model = infini_model(segment_length=6, update=update, segment_alignment=alignment)
    ids, mask = tokens(3, 15), torch.ones(3, 15, dtype=torch.long)
    mask[0, :4] = 0
    mask[2, :9] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 14, "do_sample": False}
    cached = model.generate(**inputs)
    assert torch.equal(cached, model.generate(**inputs, use_cache=False))
    assert torch.equal(cached, model.generate(**inputs, prefill_chunk_size=4))
    alone = model.generate(ids[2:, 9:], max_new_tokens=14, do_sample=False)
    assert torch.equal(cached[2, 15:], alone[0, 6:])


def test_beam_search_finds_the_same_with_and_without_cache():
    model = infini_model(segment_length=5, segment_alignment="end")
    inputs = {"input_ids": tokens(2, 11), "max_new_tokens": 9, "num_beams": 3}
    assert torch.equal(model.generate(**inputs), model.generate(**inputs, use_cache=False))


def test_rows_of_the_cache_can_be_reordered_and_repeated():
    model = infini_model(segment_length=5, segment_alignment="end")
    ids, mask = tokens(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[1, :6] = 0
    rows = torch.tensor([1, 0, 1])
    caches = [
        model(ids[:, :11], attention_mask=mask[:, :11], use_cache=True).past_key_values
        for _ in range(2)
    ]
    caches[1].reorder_cache(rows)
    expected = model(ids[:, 11:], past_key_values=caches[0]).logits
    got = model(ids[rows, 11:], past_key_values=caches[1]).logits
    torch.testing.assert_close(got, expected[rows], rtol=1e-9, atol=1e-9)


def test_end_alignment_puts_the_prompts_end_in_the_middle_of_a_segment():
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


def test_training_lets_prompts_end_in_the_middle_half_of_a_segment():
    lengths = torch.arange(1, 200)
    generator = torch.Generator().manual_seed(0)
    model = infini_model(segment_length=8, segment_alignment="end")
    ends = (lengths + model.training_offset(lengths, generator)) % 8
    assert set(ends.tolist()) == {2, 3, 4, 5, 6}
    start = infini_model(segment_length=8, segment_alignment="start")
    assert start.training_offset(lengths, generator) is None


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_no_token_sees_a_later_one(update):
    model = infini_model(segment_length=4, update=update)
    ids = tokens(1, 14)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits[0]
        for changed in range(1, 14):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 7) % (VOCABULARY - 1) + 1
            after = model(other, use_cache=False).logits[0]
            assert torch.equal(before[:changed], after[:changed])
            assert not torch.equal(before[changed:], after[changed:])


def test_cache_bytes_do_not_grow():
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


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [
        (LlamaConfig, LlamaForCausalLM),
        (Qwen2Config, Qwen2ForCausalLM),
        (Qwen3Config, Qwen3ForCausalLM),
    ],
)
def test_one_segment_is_the_stock_model(config_class, model_class):
    torch.manual_seed(0)
    stock = model_class(config_class(**shape())).eval()
    model = convert(stock, Infini(segment_length=32))
    assert len(model.gates) == 2
    ids = tokens(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-4, atol=1e-5)


def test_saved_and_opened_again_it_is_the_same(tmp_path):
    model = infini_model(torch.float32, segment_length=5, update="delta", sigma_scale=3.0)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened) is type(model)
    assert opened.config.model_type == "infini_llama"
    assert opened.config.needlework_attention == "infini"
    assert Infini(**opened.config.infini) == Infini(**model.config.infini)
    for name, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
    ids = tokens(1, 17)
    assert torch.equal(opened(ids).logits, model(ids).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.gates[1].balance_factors.dtype == torch.float32
    cache = half(ids).past_key_values
    assert cache.layers[0].keys.dtype == torch.bfloat16
    assert cache.layers[0].memory.dtype == cache.layers[0].norm.dtype == torch.float32


def test_gates_start_as_told(tmp_path):
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


def test_converting_leaves_the_base_alone():
    base = llama()
    ids = tokens(1, 9)
    with torch.no_grad():
        before = base(ids).logits
        model = convert(base, Infini(segment_length=4))
        model.lm_head.weight.zero_()
        assert torch.equal(base(ids).logits, before)
    assert base.config.model_type == "llama"


def test_what_cannot_be_done_is_one_clear_error():
    sliding = MistralForCausalLM(MistralConfig(**shape()))
    with pytest.raises(ValueError, match="model_type mistral cannot be converted"):
        convert(sliding, Infini())
    mixed = Qwen2Config(**shape(use_sliding_window=True, sliding_window=4, max_window_layers=1))
    with pytest.raises(ValueError, match="layers of sliding_attention"):
        convert(Qwen2ForCausalLM(mixed), Infini())
    model = infini_model(segment_length=4)
    with pytest.raises(ValueError, match="needs InfiniCache"):
        model(tokens(1, 3), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="padding masks only"):
        model(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(tokens(1, 3), max_new_tokens=1, cache_implementation="static")
