"""Reference implementation of distillation targets in plain Python."""

import math


def attention(q, keys, scale, softcap, sink):
    """Attention probabilities of one query [d] over `keys`, all of which it may see."""
    logits = [scale * sum(a * b for a, b in zip(q, k, strict=True)) for k in keys]
    if softcap is not None:
        logits = [softcap * math.tanh(x / softcap) for x in logits]
    weights = [math.exp(x) for x in logits]
    total = sum(weights) + (0 if sink is None else math.exp(sink))
    return [w / total for w in weights]


def tile(query, key, tokens, size, *, scale, softcap, sinks):
    """Attention, max-pooled over `tokens`, over query heads [heads, n, d] with common keys [n, d],
    and over each block; normalized to sum 1."""
    maxima = [0.0] * -(-len(key) // size)
    for head, q in enumerate(query):
        for t in tokens:
            weights = attention(q[t], key[: t + 1], scale, softcap, sinks and sinks[head])
            for j, weight in enumerate(weights):
                maxima[j // size] = max(maxima[j // size], weight)
    return [m / sum(maxima) for m in maxima]
