"""SketchWalk's formulae as plain loops."""

import math
from fractions import Fraction

import numpy as np


def softmax_power(logits, s):
    """For logits [h][j]: (sum over h of softmax_j)^s."""
    total = [0.0] * len(logits[0])
    for row in logits:
        top = max(row)
        below = sum(math.exp(x - top) for x in row)
        total = [t + math.exp(x - top) / below for t, x in zip(total, row, strict=True)]
    return [t**s for t in total]


def kept_by_rank(system, row):
    """Blocks that a row keeps by rank, and its own, which is the last of its scores."""
    own = len(row) - 1
    if system.select == "topk":
        best = sorted(range(own), key=lambda j: (-row[j], j))
        return {own, *best[: system.kept_blocks(own) - 1]}
    return {own, *above_quantile(system, row, range(own + 1))}


def above_quantile(system, row, among):
    limit = np.quantile([row[j] for j in among], system.quantile) if among else np.inf
    return {j for j in among if row[j] > limit}


def shares(system, i, tokens, sink_share):
    """Sinks and local blocks of row i in a prompt of `tokens` tokens."""

    def blocks(share):
        return math.ceil(Fraction(str(share)) * tokens / system.block_size)

    sinks = {j for j in range(i + 1) if j < blocks(sink_share)}
    return sinks | {j for j in range(i + 1) if i - j < blocks(system.local_share)}


def forced(system, i, tokens, is_decode):
    """Blocks that row i always keeps in a prompt of `tokens` tokens."""
    kept = shares(system, i, tokens, system.sink_share)
    last = math.ceil(tokens / system.block_size) - system.dense_last_rows
    return set(range(i + 1)) if i >= last and not is_decode else kept


def kept_blocks(system, row, tokens, is_decode):
    """All blocks that a row keeps. Forced blocks count towards top_k_blocks; unranked sinks and
    local blocks are excluded from the quantile."""
    own = len(row) - 1
    always = forced(system, own, tokens, is_decode)
    if system.select == "quantile":
        unranked = system.unranked_sink_share
        out = shares(system, own, tokens, system.sink_share if unranked is None else unranked)
        others = [j for j in range(own + 1) if j not in out]
        return {own} | always | above_quantile(system, row, others)
    first = {own} | always
    rest = sorted((j for j in range(own) if j not in first), key=lambda j: (-row[j], j))
    return first | set(rest[: max(0, system.kept_blocks(own) - len(first))])


def only_kept_entries(system, x):
    """x [b, b] with only the entries that each row keeps by rank."""
    result = np.zeros_like(x)
    for i in range(len(x)):
        for j in kept_by_rank(system, x[i, : i + 1]):
            result[i, j] = x[i, j]
    return result


def walk_product(system, r, w):
    """R W, entry by entry."""
    if system.walk_memory == "sparse":
        r, w = only_kept_entries(system, r), only_kept_entries(system, w)
    result = np.zeros_like(r)
    for i in range(len(r)):
        for j in range(i + 1):
            result[i, j] = sum(r[i, m] * w[m, j] for m in range(j, i + 1))
    return result


def box_bound(q, keys):
    """Upper bound of the scores of q [r] and keys [n, r], from the box around the keys."""
    return sum(max(q[c] * k[c] for k in keys) for c in range(len(q)))


def reference_walk(system, query, key, is_decode, sketch):
    """R of every layer for one sequence without padding, float64, from the formulae.

    query [layers, heads, n, d], key [layers, kv heads, n, d]. Rows use their mean query; in decode
    the last row uses the last queries.
    """
    if system.heads == "mean":
        query, key = query.mean(1, keepdims=True), key.mean(1, keepdims=True)
    size, n, r = system.block_size, query.shape[2], sketch.shape[1]
    b, group = math.ceil(n / size), query.shape[1] // key.shape[1]
    scale = query.shape[3] / 100 if system.score_scale is None else system.score_scale
    previous, walks = None, []
    for q, k in zip(query, key, strict=True):
        step = np.zeros((b, b))
        for i in range(b):
            logits = []
            for h in range(len(q)):
                mean = q[h, i * size : min(n, (i + 1) * size)].mean(0)
                if i == b - 1 and is_decode:
                    mean = q[h, max(0, n - system.decode_queries) : n].mean(0)
                logits.append([])
                for j in range(i + 1):
                    block = k[h // group, j * size : min(n, (j + 1) * size)]
                    if system.keys == "mean":
                        score = (mean @ sketch) @ (block.mean(0) @ sketch) / math.sqrt(r)
                    else:
                        score = box_bound(mean @ sketch, block @ sketch) / math.sqrt(r)
                    logits[-1].append(scale * score)
            step[i, : i + 1] = softmax_power(logits, system.sparsity_exponent)
            if system.walk == "damped":
                step[i] /= step[i].sum()
        if system.walk == "off" or (system.walk == "product" and previous is None):
            current = step
        elif system.walk == "product":
            current = walk_product(system, previous, step)
        else:
            current, beta = step if previous is None else previous, system.walk_damping
            for _ in range(system.walk_steps):
                current = (1 - beta) * step + beta * walk_product(system, current, step)
        previous = current / current.sum(1, keepdims=True)
        walks.append(previous)
    return walks
