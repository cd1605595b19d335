"""Gather attention heads that tensor parallelism distributes over processes."""

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel


def gather_heads(model: PreTrainedModel, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys of all heads, so that every process selects the same blocks.

    query [batch, heads of this process, new tokens, d], key [batch, kv heads of this process, all
    tokens, d]. They are returned unchanged if this process has all heads.
    """
    if not _are_divided(model, query.shape[1]):
        return query, key
    group = model._mesh_manager.get_mesh("tp").get_group()
    return _gather(query, group), _gather(key, group)


def own_choices(model: PreTrainedModel, scores: Tensor, heads: int) -> Tensor:
    """The part of scores [batch, choices, rows, blocks] of all heads that belongs to the `heads`
    heads of this process; unchanged if it has all heads or one choice serves all."""
    if scores.ndim == 3 or not _are_divided(model, heads):
        return scores
    total = model.config.get_text_config(decoder=True).num_attention_heads
    rank = model._mesh_manager.get_mesh("tp").get_local_rank()
    return scores.chunk(total // heads, 1)[rank]


def mean_pairs(model: PreTrainedModel, pairs: Tensor, chosen: Tensor, heads: int) -> Tensor:
    """Mean of `pairs` (0-dim) over the choices of all processes; `pairs` is that over the choices
    `chosen` of this one, which has `heads` heads. Unchanged if it has all, or one choice serves
    all."""
    if chosen.ndim == 3 or not _are_divided(model, heads):
        return pairs
    group = model._mesh_manager.get_mesh("tp").get_group()
    pairs = pairs.clone()
    distributed.all_reduce(pairs, group=group)
    return pairs / group.size()


def _are_divided(model: PreTrainedModel, heads: int) -> bool:
    """Whether this process, which has `heads` query heads, is one of several that share them."""
    total = model.config.get_text_config(decoder=True).num_attention_heads
    return getattr(model, "_tp_size", None) not in (None, 1) and heads != total


def _gather(x: Tensor, group: distributed.ProcessGroup) -> Tensor:
    parts = [x.new_empty(x.shape) for _ in range(group.size())]
    distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)
