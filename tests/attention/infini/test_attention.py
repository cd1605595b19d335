import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)

from needlework.attention.apply import apply
from needlework.attention.infini.cache import InfiniCache
from needlework.config.attention import Infini, Random
from needlework.models.convert import convert

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


def rotated(x, position, form="half", share=1.0, theta=10000.0):
    """RoPE of one vector, pair by pair, as a complex rotation; the dimensions behind stay."""
    width = int(len(x) * share)
    half = width // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(half, dtype=torch.float64), position * frequencies)
    first, second = {
        "half": (slice(0, half), slice(half, width)),
        "interleaved": (slice(0, width, 2), slice(1, width, 2)),
    }[form]
    turned = torch.complex(x[first], x[second]) * turn
    y = x.clone()
    y[first], y[second] = turned.real, turned.imag
    return y


def reference_attention(q, k, v, betas, system, offset, rope=rotated):
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
                [rope(q[t, head], t) @ rope(k[s, kv], s) for s in range(first, t + 1)]
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


def by_reference(model, ids, mask, compute):
    """Logits of a converted model whose attention is computed row by row by `compute`.

    compute takes q [n, H, D], k, v [n, G, D] of a row's real tokens, from before RoPE, and betas.
    """

    def attention(module, query, key, value, attention_mask, **kwargs):
        out = query.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1])
        for row, real in enumerate(mask.bool()):
            q, k, v = (x[row].transpose(0, 1)[real] for x in (query, key, value))
            out[row, real] = compute(q, k, v, module.gate.balance_factors)
        return out, None

    AttentionInterface.register("by_reference", attention)
    model.config._attn_implementation = "by_reference"
    try:
        with torch.no_grad():
            return model(ids, attention_mask=mask, use_cache=False).logits
    finally:
        model.config._attn_implementation = "infini"


ROPE = {
    "phi": {"share": 0.5},
    "gpt_neox": {"share": 0.25},
    "cohere": {"form": "interleaved"},
    "glm4": {"form": "interleaved", "share": 0.5},
}


@settings(max_examples=20, deadline=None)
@given(
    family=st.sampled_from(list(ROPE)),
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=2),
    segment_length=st.integers(1, 6),
    update=st.sampled_from(["linear", "delta"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    memory=st.booleans(),
    empty=st.booleans(),
)
def test_partial_and_interleaved_rope_match_the_formulae(
    family, lengths, segment_length, update, activation, memory, empty
):
    system = Infini(
        segment_length=segment_length,
        update=update,
        balance_act_type=activation,
        balance_init_type="randn",
        turn_on_memory=memory,
        gate_empty_memory=empty,
    )
    model = convert(_family(family), system)
    columns = max(lengths)
    ids = tokens(len(lengths), columns)
    mask = (torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]).long()
    rope = functools.partial(rotated, **ROPE[family])
    compute = functools.partial(reference_attention, system=system, offset=0, rope=rope)
    expected = by_reference(model, ids, mask, compute)
    with torch.no_grad():
        got = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **FLOAT32_ANGLES)


@functools.cache
def _family(model_type):
    torch.manual_seed(0)
    share = ROPE[model_type].get("share", 1.0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
    changes = shape(head_dim=8, hidden_size=48, rope_parameters=rope)
    config = CONFIG_MAPPING[model_type](**changes)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("segment_length", [1, 4, 30])
def test_linear_memory_is_masked_linear_attention(segment_length):
    """The whole text as two n x n matrices: softmax within segments, sigma(q) sigma(k) across."""
    system = Infini(segment_length=segment_length, balance_act_type="sigmoid")
    model = infini_model(**system.model_dump(exclude={"type"}))
    ids, mask = tokens(1, 23), torch.ones(1, 23, dtype=torch.long)

    def matrices(q, k, v, betas):
        n, heads, dim = q.shape
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        segment = torch.arange(n) // segment_length
        turned = [
            torch.stack([torch.stack([rotated(x, t) for x in row]) for t, row in enumerate(y)])
            for y in (q, k)
        ]
        logits = torch.einsum("ihd,jhd->hij", *turned) / math.sqrt(dim)
        inside = (segment[:, None] == segment) & torch.ones(n, n, dtype=torch.bool).tril()
        local = logits.masked_fill(~inside, -torch.inf).softmax(-1)
        past = torch.einsum("ihd,jhd->hij", *(torch.nn.functional.elu(x) + 1 for x in (q, k)))
        past = past * (segment[:, None] > segment)
        past = past / past.sum(-1, keepdim=True).clamp_min(1e-300)
        g = betas.double().sigmoid()[:, None, None] * (segment > 0)[:, None]
        return torch.einsum("hij,jhd->ihd", g * past + (1 - g) * local, v)

    expected = by_reference(model, ids, mask, matrices)
    with torch.no_grad():
        got = model(ids, use_cache=False).logits
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


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradients_are_the_slopes(update):
    """By finite differences through three segments, of Phi: its norms are float64 too."""
    torch.manual_seed(0)
    config = shape(num_attention_heads=2, num_key_value_heads=2, hidden_size=8, intermediate_size=6)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING["phi"](**config)).double().eval()
    system = Infini(segment_length=2, update=update, balance_init_type="randn")
    model = convert(base, system).double()
    betas = [gate.balance_factors for gate in model.gates]
    assert {beta.dtype for beta in betas} == {torch.float64}

    def last_logits(embeddings, *values):
        named = dict(zip(("0", "1"), values, strict=True))
        named = {f"model.layers.{i}.self_attn.gate.balance_factors": b for i, b in named.items()}
        inputs = {"inputs_embeds": embeddings, "use_cache": False, "logits_to_keep": 1}
        return torch.func.functional_call(model, named, kwargs=inputs).logits[..., :3]

    embeddings = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    values = [beta.detach().clone().requires_grad_() for beta in betas]
    assert torch.autograd.gradcheck(last_logits, (embeddings, *values), atol=1e-6)
    slope = torch.autograd.grad(last_logits(embeddings, *values).sum(), embeddings)[0]
    assert slope[0, 0].abs().max() > 1e-6


def test_checkpointed_layers_train_the_same():
    model = infini_model(segment_length=4, update="delta").train()
    ids = tokens(2, 15)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.activation_checkpointing_enable()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


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
def test_no_token_sees_a_later_one(update, changes, activation):
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
            # Local attention alone ends with the segment; memory carries on to the end.
            assert reached[-1] or not changes.get("turn_on_memory", True)


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


def test_gates_stay_float32_in_models_of_half_precision():
    model = infini_model(torch.float32)
    betas = [gate.balance_factors.clone() for gate in model.gates]
    for change in (model.half, model.bfloat16, lambda: model.to(torch.float16), model.float):
        change()
        for gate, beta in zip(model.gates, betas, strict=True):
            assert gate.balance_factors.dtype == torch.float32
            assert torch.equal(gate.balance_factors, beta)


def test_autocast_leaves_the_memory_float32():
    model = infini_model(torch.float32, segment_length=16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = model(tokens(1, 16), use_cache=True).past_key_values.layers[0]
    # The segment that has just been finished still lies where the next one will be written.
    keys, values = (x.double() for x in (state.keys, state.values))
    key_sigma = torch.nn.functional.elu(keys) + 1
    expected = key_sigma.transpose(2, 3) @ values
    torch.testing.assert_close(state.memory.double(), expected, rtol=1e-5, atol=1e-5)


def test_where_the_text_stands_changes_nothing():
    model = infini_model(torch.float32, segment_length=8)
    ids, positions = tokens(1, 30), torch.arange(30)[None]
    with torch.no_grad():
        here = model(ids, position_ids=positions, use_cache=False).logits
        there = model(ids, position_ids=positions + 10_000_000, use_cache=False).logits
    assert torch.equal(here, there)


def test_rope_that_grows_with_the_text_does_not():
    """Dynamic RoPE changes with the longest text seen; segments never see one."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    base = llama(torch.float32, rope_parameters=rope, max_position_embeddings=8)
    model = convert(base, Infini(segment_length=16))
    ids = tokens(1, 30)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        model(tokens(1, 300), use_cache=False)
        assert torch.equal(model(ids, use_cache=False).logits, before)


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
    model = infini_model(segment_length=4)
    with pytest.raises(ValueError, match="needs InfiniCache"):
        model(tokens(1, 3), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="Infini-attention is part of this model"):
        model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="model: has infini as its own attention"):
        apply(model, Random(dense_layers=0))
    with pytest.raises(ValueError, match="padding masks only"):
        model(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3))
