"""SeerAttention (Gao et al., 2024; SeerAttention-R, 2025): blocks chosen by learned gates.

Prefill scores blocks with the mean query of each row, per query head; decode with the token's own
query, per key head. Both gates compare queries with pooled keys (attention/seer/gates.py).
"""

import math
from collections.abc import Callable
from functools import cached_property
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from needlework.attention.base import FLOAT32_BYTES, Forward, RankedSelector
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks, joined
from needlework.attention.density import STAGES
from needlework.attention.layers import LayerShape
from needlework.attention.rope import Angles, Name, Rotation
from needlework.attention.seer.gates import DecodeGate, PrefillGate, pool_keys
from needlework.attention.seer.released import open_gates
from needlework.config.attention.base import Stage
from needlework.config.attention.seer import Seer
from needlework.config.saved_gates import saved_gates

NUMBERS_AT_ONCE = 2**20
"""Largest number of query or key elements rotated back together, or of logits ranked together,
unless one head has more."""


class Method(RankedSelector[Seer]):
    """Scores blocks with the gates of the forward's stage.

    State in the cache per sparse layer, float32: `prefill` and `decode` [batch, heads of the gate's
    keys, blocks, gate_dim], pooled keys as the gate compares them; `keys` [batch, kv heads,
    block_size, d] and `queries` [batch, heads, block_size, d], those of the last block before RoPE.
    """

    def __init__(self, system: Seer, gate_dim: int | None = None):
        super().__init__(system)
        if gate_dim is not None:
            self.gate_dim = gate_dim
        self._stages: list[Stage] = [stage for stage in STAGES if not system.is_dense(stage)]

    def attach(self, model: PreTrainedModel) -> None:
        """Open the gates for `model` and record its rotary angles.

        Raises:
            ValueError: the gates do not exist, are for another model or block size, or lack a
                stage that is sparse.
        """
        system = self.system
        self._gates = open_gates(system.gates, model)
        description = self._gates.description
        if description.block_size != system.block_size:
            raise ValueError(
                f"block_size: {system.block_size} does not match the gates in {system.gates}; "
                f"write {description.block_size}"
            )
        for stage in self._stages:
            if stage not in description.stages:
                raise ValueError(
                    f"gates: {system.gates} has no gates for {stage}; write `stages: "
                    f"{description.stages[0]}`, or distill them"
                )
        self._rotation = Rotation(model)

    def detach(self) -> None:
        """Remove the hooks from the model."""
        self._rotation.remove()

    @cached_property
    def gate_dim(self) -> int:
        """Width of the gates, read from their folder.

        Raises:
            ValueError: the folder has no gates, or unsupported ones.
        """
        try:
            return saved_gates(self.system.gates).gate_dim
        except ValueError as error:
            raise ValueError(f"gates: {self.system.gates} {error}") from None

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor | None:
        """Logits of the gate, or +-inf if a threshold or share decides, float32; -inf for blocks
        after a row's own, and in decode for its own.

        [batch, heads, rows, blocks] in prefill, [batch, kv heads, 1, blocks] in decode.
        """
        queries, angles = self._store_tokens(layer, query, key, forward)
        blocks, state, stage = forward.blocks, forward.state.tensors[layer], forward.stage
        if stage == "decode":
            (queries,) = self._rotation.plain(layer, "query", query)
            angles = self._angles("token", forward)
        assert queries is not None  # a sparse prefill pools queries
        gate = self._gate(stage, layer)
        logits = gate.logits(gate.queries(queries, angles), state[stage])
        # Decoding keeps the incomplete own block in any case; its pool must not compete.
        hidden = blocks.future | blocks.own if stage == "decode" else blocks.future
        logits.masked_fill_(hidden[:, None], -torch.inf)
        # A few heads at a time: ranking takes several times the memory of the logits.
        heads = max(1, NUMBERS_AT_ONCE // logits[:, 0].numel())
        for part in logits.split(heads, 1):
            part.copy_(self._marked(part, forward))
        return logits

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        """Pool the tokens of this forward for the stage that is sparse."""
        self._store_tokens(layer, query, key, forward)

    def sparse_prefill_density(self, tokens: int) -> float:
        if self.system.threshold is not None:
            return 1.0
        return super().sparse_prefill_density(tokens)

    def kept_in_prefill(self, blocks: int) -> NDArray[np.number]:
        kept = super().kept_in_prefill(blocks)
        if self.system.nz_ratio is not None:
            kept = np.full(blocks, 1 + _count_of_ratio(self.system.nz_ratio, blocks))
        is_last = np.arange(blocks) >= blocks - self.system.dense_last_rows
        return np.where(is_last, blocks, kept)

    def sparse_decode_density(self, tokens: int) -> float:
        system = self.system
        if system.token_budget is not None:
            blocks = system.token_budget // system.block_size + 1
            return min(1.0, blocks / self.count_blocks(tokens))
        return 1.0 if system.decode_threshold is not None else super().sparse_decode_density(tokens)

    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        heads, kv, block = layer.heads, layer.kv_heads, self.system.block_size * layer.key_dim
        pooled_heads = kv if "decode" in self._stages else 0
        last = kv * block
        if "prefill" in self._stages:
            # Gates as wide as a head have keys for each query head.
            pooled_heads += heads if self.gate_dim == layer.key_dim else kv
            last += heads * block
        return FLOAT32_BYTES * (pooled_heads * self.count_blocks(tokens) * self.gate_dim + last)

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        return 2 * self.count_blocks(tokens) ** 2 * layer.heads * layer.key_dim

    def choices(self, layer: LayerShape) -> int:
        return layer.heads if "prefill" in self._stages else 1

    def _store_tokens(
        self, layer: int, query: Tensor, key: Tensor, forward: Forward
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """Pool this forward's keys and queries, and store the keys as the gates compare them.

        Returns:
            The mean query of each row before RoPE [batch, heads, rows, d], None if prefill is
            dense; and the rotary angles of the rows' first tokens.
        """
        blocks, state = forward.blocks, forward.state.tensors.setdefault(layer, {})
        pools = self._pooled(layer, key[:, :, blocks.mask.start :], _pool_keys, forward, "key")
        angles = self._angles("rows", forward)
        for sparse_stage in self._stages:
            keys = self._gate(sparse_stage, layer).keys(pools, angles)
            state[sparse_stage] = write_rows(state.get(sparse_stage), keys, blocks)
        queries = None
        if "prefill" in self._stages:
            queries = self._pooled(layer, query, _mean, forward, "query")
        return queries, angles

    def _angles(self, of: str, forward: Forward) -> Angles:
        """Rotary angles of the rows' first tokens ("rows") or of the decoded token ("token"), the
        same in every layer."""
        blocks, shared = forward.blocks, forward.shared
        names = f"cos of {of}", f"sin of {of}"
        if names[0] not in shared:
            at = blocks.number * blocks.size
            if of == "token":
                at = (blocks.mask.start - blocks.first).clamp_min(0)[:, None]
            angles = self._rotation.at(at, self._gates.description.gate_dim)
            shared.update(zip(names, angles, strict=True))
        return shared[names[0]], shared[names[1]]

    def _gate(self, stage: Stage, layer: int) -> PrefillGate | DecodeGate:
        return getattr(self._gates, stage)[str(layer)]

    def _pooled(
        self, layer: int, x: Tensor, pool: Callable, forward: Forward, name: Name
    ) -> Tensor:
        """`pool` over each row's block of x [batch, heads, new tokens, d] before RoPE, including
        the block's tokens of earlier forwards. Stores the last block in the state.

        A few heads at a time, to limit copies of a long prompt.
        """
        blocks, state = forward.blocks, forward.state.tensors[layer]
        heads = max(1, NUMBERS_AT_ONCE // x[:, 0].numel())
        stored = {"query": "queries", "key": "keys"}[name]
        earlier = state[stored].split(heads, 1) if stored in state else repeat(None)
        parts = self._rotation.plain(layer, name, x, heads)
        pools, last = [], []
        for part, before in zip(parts, earlier, strict=False):
            rows = blocks.of_queries(part)
            if before is not None:
                first = rows[:, :, :1] + (before * blocks.is_earlier)[:, :, None]
                rows = first if blocks.rows == 1 else torch.cat([first, rows[:, :, 1:]], 2)
            pools.append(pool(rows, blocks))
            last.append(torch.stack([rows[b, :, row] for b, row in enumerate(blocks.last)]))
        state[stored] = joined(last, 1)
        return joined(pools, 1)

    def _marked(self, logits: Tensor, forward: Forward) -> Tensor:
        system, blocks = self.system, forward.blocks
        ends = [-(-n // blocks.size) for n in forward.prompt_lengths]
        count: list[int] | None = None
        if forward.is_decode:
            threshold, budget = system.decode_threshold, system.token_budget
            if budget is not None:
                count = [budget // blocks.size] * len(ends)
        else:
            threshold, ratio = system.threshold, system.nz_ratio
            if ratio is not None:
                count = [_count_of_ratio(ratio, n) for n in ends]
        if threshold is not None:
            logits = _mark(logits.softmax(-1) > threshold)
        elif count is not None:
            logits = _mark(_best(logits, blocks.constant(*count, shape=(-1, 1, 1, 1))))
        if forward.is_decode:
            if threshold is None and count is None:
                blocks.marks_blocks = False
            elif threshold is None:
                # Known without reading the scores from the device.
                blocks.most_marked = 1 + max(count or [0])
            return logits
        if not system.dense_last_rows:
            return logits
        last = blocks.constant(*ends, shape=(-1, 1)) - system.dense_last_rows
        is_last = blocks.number >= last
        return logits.masked_fill(is_last[:, None, :, None], torch.inf)


def _count_of_ratio(nz_ratio: float, blocks: int) -> int:
    """Blocks kept by every row of a prompt of `blocks` blocks."""
    return max(1, math.floor((1 - math.sqrt(1 - nz_ratio)) * blocks))


def _pool_keys(rows: Tensor, blocks: Blocks) -> Tensor:
    return pool_keys(rows, blocks.is_seen)


def _mean(rows: Tensor, blocks: Blocks) -> Tensor:
    return rows.sum(3) / blocks.seen


def _mark(kept: Tensor) -> Tensor:
    return torch.where(kept, torch.inf, -torch.inf)


def _best(logits: Tensor, counts: Tensor) -> Tensor:
    """Whether a block is among the best of its row; ties go to the earlier block. How many are
    best: `counts` [batch, 1, 1, 1]."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(logits.shape[-1], device=logits.device)
    is_best = (rank < counts).expand_as(order)
    return torch.zeros_like(is_best).scatter(-1, order, is_best)
