"""SeerAttention's gates and selection rules as plain loops, and a spy on the real ones."""

import math

import numpy as np
import torch
from support.rope_reference import rotate_vector

from needlework.attention.blocks import choose

SIZE = 4
"""Tokens per block."""


class GateSpy:
    """Records queries and keys of a model before RoPE, and the blocks that its gates choose."""

    def __init__(self, handle):
        self.handle, self.plain, self.choices = handle, {}, []
        scores, observe = handle.selector.scores, handle.selector.observe
        self.hooks = []
        for layer, decoder in enumerate(handle.model.model.layers):
            attention = decoder.self_attn
            for name in ("q", "k"):
                module = getattr(attention, f"{name}_norm", getattr(attention, f"{name}_proj"))
                self.hooks.append(
                    module.register_forward_hook(
                        lambda module, args, out, at=(layer, name): self.plain.setdefault(
                            at, []
                        ).append(out.unflatten(1, (-1, 8)) if out.ndim == 2 else out)
                    )
                )

        def spy(layer, query, key, forward):
            computed = scores(layer, query, key, forward)
            chosen = choose(computed, forward.blocks).tolist()
            kept = [[[{*row} - {-1} for row in rows] for rows in heads] for heads in chosen]
            self.choices.append((layer, forward.blocks, kept))
            return computed

        def spy_dense(layer, query, key, forward):
            observe(layer, query, key, forward)
            self.choices.append((layer, forward.blocks, None))

        handle.selector.scores, handle.selector.observe = spy, spy_dense

    def of(self, layer, name, b, first):
        """Queries or keys of batch row b from token `first` on [heads, tokens, 8], float64."""
        parts = [
            part.reshape(*part.shape[:2], -1, 8)[b].transpose(0, 1)
            for part in self.plain[layer, name]
        ]
        return torch.cat(parts, 1)[:, first:].double().numpy()

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def pooled(keys):
    """Maximum, minimum and mean of keys [tokens, d] -> [3 d]."""
    return np.array(
        [pool(column) for pool in (max, min, np.mean) for column in keys.T], dtype=np.float64
    )


def reference_gate(gates, layer, query, key, row, is_decode, real=None):
    """Softmax of the gate for one row of blocks: {head: one share per block up to the row}. In
    decode, the row's own block has no share.

    query [heads, n, d] and key [kv heads, n, d] of all tokens so far; `real` [n] excludes padding.
    Decode uses the last query.
    """
    heads, n, d = query.shape
    real = np.ones(n, dtype=bool) if real is None else real
    kv, g, shares = len(key), gates.description.gate_dim, {}
    gate = (gates.decode if is_decode else gates.prefill)[str(layer)]

    def tokens_of(block):
        return [t for t in range(block * SIZE, min((block + 1) * SIZE, n)) if real[t]]

    for head in range(kv if is_decode else heads):
        of_kv = head if is_decode else head // (heads // kv)
        if is_decode:
            q, at = np.zeros(g), n - 1
            for i in range(heads // kv):
                q += query[head * (heads // kv) + i, -1] @ gate.query[head, i].double().numpy()
        else:
            q, at = query[head, tokens_of(row)].mean(0), row * SIZE
            if g != d:
                q = q @ gate.query[head].double().numpy()
        logits = []
        for j in range(row if is_decode else row + 1):
            pools = pooled(key[of_kv, tokens_of(j)])
            k = pools @ gate.key[of_kv if is_decode or g != d else head].double().numpy()
            logits.append(rotate_vector(q, at) @ rotate_vector(k, j * SIZE) / math.sqrt(g))
        weights = [math.exp(x - max(logits)) for x in logits]
        shares[head] = [x / sum(weights) for x in weights] + [0.0] * is_decode
    return shares


def follows_rule(kept, gate, row, blocks_of_prompt, system, is_decode):
    """Whether `kept` follows the rule of `system`; blocks that tie within rounding may swap."""
    threshold = system.decode_threshold if is_decode else system.threshold
    if not is_decode and row >= blocks_of_prompt - system.dense_last_rows:
        return kept == {*range(row + 1)}
    if threshold is not None:
        expected = {j for j in range(row + 1) if gate[j] > threshold}
        borderline = {j for j in range(row + 1) if abs(gate[j] - threshold) < 1e-5}
        return kept | borderline == expected | {row} | borderline
    if is_decode and system.token_budget is not None:
        count, candidates = system.token_budget // SIZE, row
    elif not is_decode and system.nz_ratio is not None:
        share = 1 - math.sqrt(1 - system.nz_ratio)
        count, candidates = max(1, math.floor(share * blocks_of_prompt)), row + 1
    elif system.density is not None:
        # The row's own block is one of them.
        count, candidates = math.ceil(system.density * (row + 1) - 1e-9) - 1, row
    else:
        count, candidates = system.top_k_blocks - 1, row
    best = sorted(range(candidates), key=lambda j: -gate[j])[:count]
    expected = {*best, row}
    if kept == expected:
        return True
    return len(kept) == len(expected) and all(
        abs(gate[i] - min(gate[j] for j in best)) < 1e-6 for i in kept ^ expected
    )
