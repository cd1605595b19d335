"""SeerAttention (Gao et al., 2024; SeerAttention-R, 2025): blocks chosen by learned gates.

Prefill asks with the mean query of each block, by query head; decode asks with the token's own
query, by key head. Both compare with pooled keys (seer_gates.py).
"""

import math
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor
from transformers import PreTrainedModel

from needlework.attention.apply import Forward
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks
from needlework.attention.rope import Rotation
from needlework.attention.seer.gates import STAGES, DecodeGate, Gates, PrefillGate, pool_keys
from needlework.config.attention import Seer

NUMBERS_AT_ONCE = 2**20
"""Most numbers of queries or keys turned back together, or of logits ranked, unless one head has
more."""


class Selector:
    """Scores blocks by the gates of the forward's stage; what it remembers lies in the cache.

    For each sparse layer, float32: `prefill` and `decode` [batch, heads of the gate's keys, blocks,
    gate_dim], pooled keys as the gate compares them; `keys` [batch, kv heads, block_size, d] and
    `queries` [batch, heads, block_size, d], those of the last block before RoPE.
    """

    def __init__(self, system: Seer):
        self.system = system
        skipped = {"prefill": system.skip_prefill, "decode": system.skip_decode}
        self._stages = [stage for stage in STAGES if not skipped[stage]]

    def attach(self, model: PreTrainedModel) -> None:
        """Open the gates for `model` and listen to its angles.

        Raises:
            ValueError: no such gates, those of another model or block size, or none for a stage
                that is sparse.
        """
        system = self.system
        self._gates = Gates.open(system.gates, model)
        made = self._gates.description
        if made.block_size != system.block_size:
            raise ValueError(
                f"block_size: {system.block_size} is not that of the gates in {system.gates}; "
                f"write {made.block_size}"
            )
        for stage in self._stages:
            if stage not in made.stages:
                raise ValueError(
                    f"gates: {system.gates} has none for {stage}; set skip_{stage}: true, "
                    "or distil them"
                )
        self._rotation = Rotation(model)

    def detach(self) -> None:
        """Take the hooks off the model."""
        self._rotation.remove()

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor | None:
        """Logits of the gate, or +-inf where a threshold or share settles a block, float32.

        [batch, heads, rows, blocks] in prefill, [batch, kv heads, 1, blocks] in decode. None where
        the stage stays dense.
        """
        blocks, held = forward.blocks, forward.state.tensors.setdefault(layer, {})
        pools = self._pooled(layer, key[:, :, blocks.mask.start :], _pool_keys, forward, "keys")
        at = blocks.number * blocks.size
        angles = self._rotation.at(at, self._gates.description.gate_dim)
        for stage in self._stages:
            keys = self._gate(stage, layer).keys(pools, angles)
            held[stage] = write_rows(held.get(stage), keys, blocks)
        if "prefill" in self._stages:
            asks = self._pooled(layer, query, _mean, forward, "queries")
        stage = "decode" if forward.is_decode else "prefill"
        if stage not in self._stages:
            return None
        if stage == "decode":
            asks = self._rotation.undo(layer, query)
            at = (blocks.mask.start - blocks.first).clamp_min(0)[:, None]
            angles = self._rotation.at(at, self._gates.description.gate_dim)
        gate = self._gate(stage, layer)
        logits = gate.logits(gate.queries(asks, angles), held[stage])
        logits.masked_fill_(blocks.future[:, None], -torch.inf)
        # Some heads at a time, as ranks and order of all take several times their logits.
        together = max(1, NUMBERS_AT_ONCE // logits[:, 0].numel())
        for part in logits.split(together, 1):
            part.copy_(self._marked(part, forward))
        return logits

    def _gate(self, stage: str, layer: int) -> PrefillGate | DecodeGate:
        return getattr(self._gates, stage)[str(layer)]

    def _pooled(self, layer: int, x: Tensor, pool: Callable, forward: Forward, name: str) -> Tensor:
        """`pool` of the rows' blocks of x [batch, heads, new tokens, d] before RoPE, those tokens
        among them that came in earlier forwards; the last block's are held under `name`.

        Some heads at a time, as all of a long prompt would be copied again and again.
        """
        blocks, held = forward.blocks, forward.state.tensors[layer]
        together = max(1, NUMBERS_AT_ONCE // x[:, 0].numel())
        earlier = held[name].split(together, 1) if name in held else repeat(None)
        found, last = [], []
        for part, before in zip(x.split(together, 1), earlier, strict=False):
            rows = blocks.of_queries(self._rotation.undo(layer, part))
            if before is not None:
                first = rows[:, :, :1] + (before * blocks.is_earlier)[:, :, None]
                rows = torch.cat([first, rows[:, :, 1:]], 2)
            found.append(pool(rows, blocks))
            last.append(torch.stack([rows[b, :, row] for b, row in enumerate(blocks.last)]))
        held[name] = torch.cat(last, 1)
        return torch.cat(found, 1)

    def _marked(self, logits: Tensor, forward: Forward) -> Tensor:
        system, blocks = self.system, forward.blocks
        ends = [-(-n // blocks.size) for n in forward.tokens]
        if forward.is_decode:
            threshold, budget = system.decode_threshold, system.token_budget
            count = None if budget is None else [budget // blocks.size] * len(ends)
        else:
            threshold, ratio = system.threshold, system.nz_ratio
            share = None if ratio is None else 1 - math.sqrt(1 - ratio)
            count = None if share is None else [max(1, math.floor(share * n)) for n in ends]
        if threshold is not None:
            logits = _mark(logits.softmax(-1) > threshold)
        elif count is not None:
            logits = _mark(_best(logits, count))
        if forward.is_decode or not system.dense_last_rows:
            return logits
        is_last = blocks.number >= blocks.number.new_tensor(ends)[:, None] - system.dense_last_rows
        return logits.masked_fill(is_last[:, None, :, None], torch.inf)


def _pool_keys(rows: Tensor, blocks: Blocks) -> Tensor:
    return pool_keys(rows, blocks.is_seen)


def _mean(rows: Tensor, blocks: Blocks) -> Tensor:
    return rows.sum(3) / blocks.seen


def _mark(kept: Tensor) -> Tensor:
    return torch.where(kept, torch.inf, -torch.inf)


def _best(logits: Tensor, count: list[int]) -> Tensor:
    """Whether a block is among the `count` best of its row, the earlier of equals first; a count
    for each row of the batch."""
    counts = torch.tensor(count, device=logits.device).view(-1, 1, 1, 1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(logits.shape[-1], device=logits.device)
    is_best = (rank < counts).expand_as(order)
    return torch.zeros_like(is_best).scatter(-1, order, is_best)
