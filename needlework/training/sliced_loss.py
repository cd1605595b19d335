"""Cross-entropy of long texts: logits of some tokens at a time, made again for gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from needlework.models.head import has_head, standing_in

LOGITS_AT_ONCE = 2**26
"""Most logits, rows * tokens * vocabulary, that a loss holds together: 256 MiB in float32."""


def summed_loss(model: PreTrainedModel, inputs: dict[str, Any], labels: Tensor) -> Tensor:
    """The cross-entropy of `labels`, summed, with gradients; in nats, a float32 scalar.

    The logits come of the model's own forward, with whatever it does to them (scales, caps). Where
    they would be more than `LOGITS_AT_ONCE`, they are made in slices that backward makes again.

    Args:
        model: its head reads what its base model gives.
        inputs: of the model's forward.
        labels: int64 [rows, n], of the last n of the inputs' columns; -100 is left out.
    """
    rows, columns = labels.shape
    together = max(1, LOGITS_AT_ONCE // (rows * model.config.get_text_config().vocab_size))
    if columns > together and has_head(model):
        output = model.base_model(**inputs, use_cache=False)
        if _reads(model, output):
            hidden = output.last_hidden_state[:, -columns - 1 : -1]
            return sum(
                checkpoint(_slice_loss, model, output, part, wanted, use_reentrant=False)
                for part, wanted in zip(
                    hidden.split(together, 1), labels.split(together, 1), strict=True
                )
            )
    logits = model(**inputs, logits_to_keep=columns + 1, use_cache=False).logits[:, :-1]
    return _summed(logits, labels)


@torch.no_grad()
def _reads(model: PreTrainedModel, output: Any) -> bool:
    """Whether the head is fed by the base model as a whole."""
    with standing_in(model, output) as stand_in:
        model(input_ids=output.last_hidden_state.new_zeros(1, 1).long(), logits_to_keep=1)
    return stand_in.was_asked


def _slice_loss(model: PreTrainedModel, output: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    with standing_in(model, output) as stand_in:
        stand_in.output["last_hidden_state"] = hidden
        return _summed(model(input_ids=labels, use_cache=False).logits, labels)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
