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


def tile(query, key, tokens, size, *, scale, softcap, sinks, earlier_only=False):
    """Attention, max-pooled over `tokens`, over query heads [heads, n, d] with common keys [n, d],
    and over each block; normalized to sum 1, of the blocks before that of the tokens if
    `earlier_only`."""
    maxima = [0.0] * -(-len(key) // size)
    for head, q in enumerate(query):
        for t in tokens:
            weights = attention(q[t], key[: t + 1], scale, softcap, sinks and sinks[head])
            for j, weight in enumerate(weights):
                maxima[j // size] = max(maxima[j // size], weight)
    if earlier_only:
        maxima[tokens[0] // size :] = [0.0] * (len(maxima) - tokens[0] // size)
    return [m / sum(maxima) if sum(maxima) else 0.0 for m in maxima]
