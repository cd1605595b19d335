"""Gather attention heads that tensor parallelism distributes over processes."""

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel


def gather_heads(model: PreTrainedModel, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys of all heads, so that every process selects the same blocks.

    query [batch, heads of this process, new tokens, d], key [batch, kv heads of this process, all
    tokens, d]. They are returned unchanged if this process has all heads.
    """
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    if getattr(model, "_tp_size", None) in (None, 1) or query.shape[1] == heads:
        return query, key
    group = model._mesh_manager.get_mesh("tp").get_group()
    return _gather(query, group), _gather(key, group)


def own_choices(model: PreTrainedModel, scores: Tensor, heads: int) -> Tensor:
    """The part of scores [batch, choices, rows, blocks] of all heads that belongs to the `heads`
    heads of this process; unchanged if it has all heads or one choice serves all."""
    total = model.config.get_text_config(decoder=True).num_attention_heads
    if scores.ndim == 3 or getattr(model, "_tp_size", None) in (None, 1) or heads == total:
        return scores
    rank = model._mesh_manager.get_mesh("tp").get_local_rank()
    return scores.chunk(total // heads, 1)[rank]


def _gather(x: Tensor, group: distributed.ProcessGroup) -> Tensor:
    parts = [x.new_empty(x.shape) for _ in range(group.size())]
    distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)
