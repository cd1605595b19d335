"""A small Infini Llama, and a reference implementation of Infini-attention."""

import math

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from needlework.config.attention.infini import Infini
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
    """A small Infini Llama with gates that differ by head and layer."""
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
    """RoPE of one vector as complex rotations of pairs; dimensions after `share` stay."""
    width = int(len(x) * share)
    half = width // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    rotation = torch.polar(torch.ones(half, dtype=torch.float64), position * frequencies)
    first, second = {
        "half": (slice(0, half), slice(half, width)),
        "interleaved": (slice(0, width, 2), slice(1, width, 2)),
    }[form]
    pairs = torch.complex(x[first], x[second]) * rotation
    y = x.clone()
    y[first], y[second] = pairs.real, pairs.imag
    return y


def reference_attention(q, k, v, betas, system, offset, rope=rotated):
    """Infini-attention one token and head at a time: q [n, H, D], k, v [n, G, D], float64."""
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
                new_memory, new_norm = memory, norm
                for s in range(segment_of.index(segment_of[t - 1]), t):
                    key, value = sigma(k[s, kv]), v[s, kv]
                    if system.update == "delta" and norm.any():
                        value = value - (key @ memory) / (key @ norm)
                    new_memory = new_memory + torch.outer(key, value)
                    new_norm = new_norm + key
                memory, norm = new_memory, new_norm
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
    """Logits of one row, with the reference in place of the model's attention."""
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
