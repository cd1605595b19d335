"""Cross-entropy of long texts with bounded memory: logits in slices, recomputed by backward."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from needlework.models.head import bypass_base_model, has_head

MAX_LOGITS = 2**26
"""Largest number of logits (rows * tokens * vocabulary) held together: 256 MiB in float32."""


def summed_loss(model: PreTrainedModel, inputs: dict[str, Any], labels: Tensor) -> Tensor:
    """Sum the cross-entropy of `labels` in nats: a float32 scalar with gradients.

    Logits come from the model's own forward, including its scales and caps. Beyond `MAX_LOGITS`
    they are computed in slices, which backward recomputes.

    Args:
        model: a causal language model.
        inputs: keyword arguments of the model's forward.
        labels: int64 [rows, n], of the last n columns of the inputs; -100 is ignored.
    """
    rows, columns = labels.shape
    slice_length = max(1, MAX_LOGITS // (rows * model.config.get_text_config().vocab_size))
    if columns > slice_length and has_head(model):
        output = model.base_model(**inputs, use_cache=False)
        if _head_calls_base_model(model, output):
            hidden = output.last_hidden_state[:, -columns - 1 : -1]
            parts = zip(hidden.split(slice_length, 1), labels.split(slice_length, 1), strict=True)
            total = torch.zeros((), device=hidden.device)
            for part in parts:
                total = total + checkpoint(_slice_loss, model, output, *part, use_reentrant=False)
            return total
    logits = model(**inputs, logits_to_keep=columns + 1, use_cache=False).logits[:, :-1]
    return _summed(logits, labels)


@torch.no_grad()
def _head_calls_base_model(model: PreTrainedModel, output: Any) -> bool:
    with bypass_base_model(model, output) as bypass:
        model(input_ids=output.last_hidden_state.new_zeros(1, 1).long(), logits_to_keep=1)
    return bypass.was_called


def _slice_loss(model: PreTrainedModel, output: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    with bypass_base_model(model, output) as bypass:
        bypass.output["last_hidden_state"] = hidden
        return _summed(model(input_ids=labels, use_cache=False).logits, labels)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
