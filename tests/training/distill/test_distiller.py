"""The distillation loss and its gradients match a reference in plain Python."""

import math

import pytest
import torch
from support.target_reference import tile
from support.toy_training import gates_config
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from needlework import Seer, apply
from needlework.attention.rope import Rotation
from needlework.attention.seer.gates import Gates
from needlework.config.gates import SeerGates
from needlework.training.distill import distiller
from needlework.training.distill.distiller import GateDistiller
from needlework.training.distill.gates import batches
from needlework.training.loop import Batch


def grouped():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def softmax(x):
    weights = [math.exp(v - max(x)) for v in x]
    return [w / sum(weights) for w in weights]


def rotated_vector(x, position, theta):
    """RoPE of one vector, with the two halves as pairs."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def times(x, matrix):
    return [
        sum(a * row[j] for a, row in zip(x, matrix, strict=True)) for j in range(len(matrix[0]))
    ]


def pools(key, size):
    """Concatenated max, min and mean of each block of key [n][d]."""
    pooled = []
    for start in range(0, len(key), size):
        columns = list(zip(*key[start : start + size], strict=True))
        means = [sum(c) / len(c) for c in columns]
        pooled.append([*map(max, columns), *map(min, columns), *means])
    return pooled


def kl(target, gate):
    return sum(t * math.log(t / g) for t, g in zip(target, gate, strict=True) if t > 0)


def projections(model, ids):
    """Queries and keys of each layer before RoPE [heads, n, d], of one row."""
    outputs = []
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    with torch.no_grad():
        model(ids, use_cache=False)
    heads = [x.unflatten(-1, (-1, 8)).transpose(0, 1) for x in outputs]
    return list(zip(heads[::2], heads[1::2], strict=True))


def slow_loss(model, gates, rows, tokens_of, rows_of, answers, share):
    """The loss by its formula, one row, head and block at a time."""
    theta, size = 10000.0, gates.description.block_size
    prefill, prefill_rows, decode, decode_weight = [0.0, 0.0], 0, [0.0, 0.0], 0.0
    for b, ids in enumerate(rows):
        for layer, (query, key) in enumerate(projections(grouped(), torch.tensor([ids]))):
            query, key = query.tolist(), key.tolist()
            rotated = [[rotated_vector(x, t, theta) for t, x in enumerate(head)] for head in query]
            rotated_keys = [
                [rotated_vector(x, t, theta) for t, x in enumerate(head)] for head in key
            ]
            gate = gates.prefill[str(layer)]
            skipped = math.ceil(math.floor(len(ids) * 0.25) / size)
            chosen = [r for r in rows_of if skipped <= r < math.ceil(len(ids) / size)]
            prefill_rows += len(chosen) if layer == 0 else 0
            for head in range(4):
                pooled = pools(key[head // 2], size)
                compared = [
                    rotated_vector(times(p, gate.key[head].tolist()), j * size, theta)
                    for j, p in enumerate(pooled)
                ]
                for r in chosen:
                    span = range(r * size, min((r + 1) * size, len(ids)))
                    mean = [sum(query[head][t][i] for t in span) / len(span) for i in range(8)]
                    pooled_query = rotated_vector(mean, r * size, theta)
                    logits = [
                        sum(a * c for a, c in zip(pooled_query, k, strict=True)) / 8**0.5
                        for k in compared[: r + 1]
                    ]
                    target = tile(
                        [rotated[head]], rotated_keys[head // 2], span, size,
                        scale=8**-0.5, softcap=None, sinks=None,
                    )  # fmt: skip
                    prefill[layer] += kl(target[: r + 1], softmax(logits)) / 4
            gate = gates.decode[str(layer)]
            for kv in range(2):
                compared = [
                    rotated_vector(times(p, gate.key[kv].tolist()), j * size, theta)
                    for j, p in enumerate(pools(key[kv], size))
                ]
                of_group = slice(2 * kv, 2 * kv + 2)
                for i, t in enumerate(tokens_of[b]):
                    both = query[2 * kv][t] + query[2 * kv + 1][t]
                    pooled_query = rotated_vector(
                        times(both, gate.query[kv].flatten(0, 1).tolist()), t, theta
                    )
                    own = t // size
                    logits = [
                        sum(a * c for a, c in zip(pooled_query, k, strict=True)) / 8**0.5
                        for k in compared[:own]
                    ]
                    target = tile(
                        rotated[of_group], rotated_keys[kv], [t], size,
                        scale=8**-0.5, softcap=None, sinks=None, earlier_only=True,
                    )  # fmt: skip
                    text = len(tokens_of[b]) - answers
                    weight = (1 - share) / text if i < text else share / answers
                    if own:
                        decode[layer] += weight * kl(target[:own], softmax(logits)) / 2
                        decode_weight += weight if layer == kv == 0 else 0
    return 10 * (sum(prefill) / prefill_rows + sum(decode) / decode_weight)


ENCODED = [([1, *range(3, 16)], [7, 8, 2]), ([1, 9, 5, 4, 9, 9, 3, 20], [6, 2])]


def first_batch(config: SeerGates) -> Batch:
    return next(batches(ENCODED, 0, config, seed=0))


@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_loss_matches_its_formula(block_size):
    model = grouped()
    torch.manual_seed(1)
    gates = Gates.new(model, block_size=block_size)
    batch = first_batch(
        gates_config(block_size=block_size, decode_queries=5, prefill_rows=4, answer_share=0.3)
    )
    with GateDistiller(model, gates) as training:
        got = training.loss(batch, batch)
        parts = [{name: x[[i]] for name, x in batch.items()} for i in range(2)]
        by_part = [training.loss(part, batch).item() for part in parts]
    tokens, rows = batch["tokens"].tolist(), batch["blocks"][0].tolist()
    texts = [ENCODED[i][0] + ENCODED[i][1] for i in batch["row"].tolist()]
    for text, sampled in zip(texts, tokens, strict=True):
        length = len(text)
        # One token from each fifth of the last three quarters, then the answer's tokens.
        edges = [length // 4 + (length - length // 4) * i / 5 for i in range(6)]
        for i, token in enumerate(sampled[:5]):
            assert math.floor(edges[i]) <= token < edges[i + 1]
        assert sampled[5:] == [length - 2, length - 1]
    expected = slow_loss(model, gates, texts, tokens, rows, 2, 0.3)
    assert got.item() == pytest.approx(expected, rel=1e-4)
    assert sum(by_part) == pytest.approx(expected, rel=1e-4)


def test_queries_and_keys_are_read_before_rope_where_a_module_returns_them(monkeypatch):
    model = grouped()
    torch.manual_seed(1)
    gates = Gates.new(model, block_size=3)
    batch = first_batch(gates_config(block_size=3, decode_queries=5))
    with monkeypatch.context() as patch, GateDistiller(model, gates) as training:
        patch.setattr(Rotation, "undo", None)
        read = training.loss(batch, batch)
    with GateDistiller(model, gates) as training:
        monkeypatch.setattr(training.rotation, "_outputs", NeverFilled())
        torch.testing.assert_close(read, training.loss(batch, batch), rtol=1e-5, atol=0)


class NeverFilled(dict):
    """Forgets the outputs of projections, so that RoPE is undone."""

    def __setitem__(self, key, value):
        pass


def test_gradients_match_finite_differences():
    model = grouped()
    torch.manual_seed(1)
    gates = Gates.new(model, block_size=3, gate_dim=4)
    batch = first_batch(gates_config(decode_queries=5))

    def loss():
        with GateDistiller(model, gates) as training:
            return training.loss(batch, batch)

    loss().backward()
    for name, parameter in gates.named_parameters():
        place = parameter.grad.abs().argmax()
        slopes = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter.view(-1)[place] += step
                slopes.append(loss().item() / (2 * step))
                parameter.view(-1)[place] -= step
        assert sum(slopes) == pytest.approx(parameter.grad.view(-1)[place].item(), rel=0.02), name


@pytest.mark.slow
def test_a_decode_gate_learns_what_decoding_chooses_from(tmp_path, monkeypatch):
    """Target and logits of every token equal those of decoding it: the attention to complete
    earlier blocks, max-pooled over their keys and the group's heads, and the gate's scores."""
    size, n, model = 4, 18, grouped()
    ids = torch.arange(n)[None] * 7 % 24
    torch.manual_seed(1)
    gates = Gates.new(model, block_size=size, stages=["decode"])
    gates.save(tmp_path)
    learned: list[tuple[Tensor, Tensor]] = []
    divergence = distiller._divergence

    def spy(target, logits, last, *weights):
        hidden = torch.arange(logits.shape[-1]) > last[..., None]
        learned.append((target[0], logits.masked_fill(hidden[:, None], -torch.inf)[0].detach()))
        return divergence(target, logits, last, *weights)

    monkeypatch.setattr(distiller, "_divergence", spy)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "tokens": torch.arange(n)[None],
        "token_weights": torch.ones(1, n),
        "block_weights": torch.zeros(1, 0),
    }
    with GateDistiller(model, gates) as training:
        assert training.loss(batch, batch).isfinite()
    system = Seer(gates=str(tmp_path), block_size=size, density=1.0, stages="decode")
    for t in range(1, n):
        own = t // size
        model.set_attn_implementation("eager")
        attention = decode_token(model, ids, t, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        scored = []
        with apply(model, system) as handle:
            scores = handle.selector.scores

            def scores_spy(*args, scores=scores, scored=scored):
                scored.append(scores(*args))
                return scored[-1]

            handle.selector.scores = scores_spy
            decode_token(model, ids, t)
        for layer, (target, logits) in enumerate(learned):
            # Of a group's two heads, then of a block's keys.
            by_key = attention[layer][0, :, 0].unflatten(0, (2, 2)).amax(1)
            earlier = by_key[:, : own * size].unflatten(1, (own, size)).amax(-1)
            expected = torch.zeros_like(target[:, t])
            expected[:, :own] = earlier / earlier.sum(-1, keepdim=True)
            torch.testing.assert_close(target[:, t], expected, rtol=1e-4, atol=1e-6)
            decoded = scored[layer - len(learned)][0, :, 0]
            assert decoded[:, own:].isneginf().all()
            torch.testing.assert_close(logits[:, t, : own + 1], decoded, rtol=1e-4, atol=1e-5)
    assert not any(target[:, :size].any() for target, _ in learned)


@torch.inference_mode()
def decode_token(model, ids, t, **arguments):
    """Output of a decode step for token t after a prefill of those before it."""
    cache = DynamicCache(config=model.config)
    model(ids[:, :t], past_key_values=cache)
    return model(ids[:, t : t + 1], past_key_values=cache, **arguments)
