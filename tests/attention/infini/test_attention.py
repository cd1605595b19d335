"""Infini-attention matches its formulae, and so do its gradients."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.infini_models import (
    ACTIVATIONS,
    FLOAT32_ANGLES,
    infini_model,
    reference_attention,
    reference_logits,
    rotated,
    shape,
    tokens,
)
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoModelForCausalLM,
)

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

pytestmark = pytest.mark.slow


@settings(max_examples=20, deadline=None)
@given(
    columns=st.integers(1, 13),
    segment_length=st.integers(1, 7),
    offset=st.integers(0, 6),
    update=st.sampled_from(["linear", "delta"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    heads=st.sampled_from([(6, 2), (4, 4), (3, 1)]),
    empty=st.booleans(),
    scale=st.sampled_from([1.0, 3.0]),
)
def test_logits_match_the_reference(
    columns, segment_length, offset, update, activation, heads, empty, scale
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
    offset = offset % segment_length
    with torch.no_grad():
        got = model(ids, use_cache=False, segment_offset=torch.tensor([offset])).logits[0]
        expected = reference_logits(model, ids[0], offset)
    torch.testing.assert_close(got, expected, **FLOAT32_ANGLES)


def by_reference(model, ids, mask, compute):
    """Logits of a converted model whose attention is `compute`, applied to each row.

    `compute` takes q [n, H, D], k, v [n, G, D] of a row's real tokens, before RoPE, and betas.
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
def test_partial_and_interleaved_rope_match_the_reference(
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
def test_linear_memory_matches_masked_linear_attention(segment_length):
    """As two n x n matrices: softmax within segments, sigma(q) sigma(k) across them."""
    system = Infini(segment_length=segment_length, balance_act_type="sigmoid")
    model = infini_model(**system.model_dump(exclude={"type"}))
    ids, mask = tokens(1, 23), torch.ones(1, 23, dtype=torch.long)

    def matrices(q, k, v, betas):
        n, heads, dim = q.shape
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        segment = torch.arange(n) // segment_length
        after_rope = [
            torch.stack([torch.stack([rotated(x, t) for x in row]) for t, row in enumerate(y)])
            for y in (q, k)
        ]
        logits = torch.einsum("ihd,jhd->hij", *after_rope) / math.sqrt(dim)
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


def test_without_memory_only_local_attention_remains():
    model = infini_model(segment_length=5, turn_on_memory=False)
    ids = tokens(1, 12)
    with torch.no_grad():
        got = model(ids, use_cache=False).logits[0]
        torch.testing.assert_close(got, reference_logits(model, ids[0], 0), **FLOAT32_ANGLES)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradients_flow_through_every_segment(update):
    """Gradients of the last token's loss match those of the reference."""
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
def test_gradients_match_finite_differences(update):
    """Through three segments, with Phi, because its norms are float64 too."""
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
    gradient = torch.autograd.grad(last_logits(embeddings, *values).sum(), embeddings)[0]
    assert gradient[0, 0].abs().max() > 1e-6


def test_activation_checkpointing_does_not_change_gradients():
    model = infini_model(segment_length=4, update="delta").train()
    ids = tokens(2, 15)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.activation_checkpointing_enable()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
