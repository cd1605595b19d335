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


def _gather(x: Tensor, group: distributed.ProcessGroup) -> Tensor:
    parts = [x.new_empty(x.shape) for _ in range(group.size())]
    distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)
