"""Heads that processes share out (tensor parallelism), brought together."""

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel


def all_heads(model: PreTrainedModel, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of all heads: by those of its own each process would choose other blocks.

    query [batch, heads of this process, new tokens, d], key [batch, kv heads of this process, all
    tokens, d]. As they are where this process has all heads.
    """
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    if getattr(model, "_tp_size", 1) == 1 or query.shape[1] == heads:
        return query, key
    group = model._mesh_manager.get_mesh("tp").get_group()
    return _gathered(query, group), _gathered(key, group)


def _gathered(x: Tensor, group: distributed.ProcessGroup) -> Tensor:
    parts = [x.new_empty(x.shape) for _ in range(group.size())]
    distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)
