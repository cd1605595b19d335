"""Cross-entropy of each token, without holding the logits of all tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from needlework.models.head import bypass_base_model, has_head

MAX_LOGITS = {"cpu": 2**21, "cuda": 2**27}
"""Maximum number of logits (tokens * vocabulary) held together, by type of device."""


class TokenLosses:
    """Losses of given tokens by any causal language model that returns logits.

    A transformers model runs once without its head. Its own forward then computes the logits of a
    few tokens at a time from the hidden states, including any scaling and capping.

    Attributes:
        in_slices: whether logits are computed in slices.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.in_slices = has_head(model)

    def __call__(
        self, ids: Tensor, targets: Tensor, first_logit: int = 0, **arguments: Any
    ) -> tuple[Tensor, Any]:
        """Compute the losses of `targets`.

        Args:
            ids: input of the model [batch, n], int64.
            targets: tokens predicted by the logits first_logit, first_logit + 1, ... [batch, m],
                int64.
            first_logit: index of the logit for the first target.
            arguments: passed to the model's forward.

        Returns:
            losses, float32 [batch, m], in nats; output of the model (without head, if in slices).
        """
        model = self.model
        if not self.in_slices or not isinstance(model, PreTrainedModel):
            return self.whole(ids, targets, first_logit, **arguments)
        output = model.base_model(ids, **arguments)
        hidden = output.last_hidden_state[:, first_logit : first_logit + targets.shape[1]]
        max_logits = MAX_LOGITS.get(ids.device.type, MAX_LOGITS["cuda"])
        slice_tokens = max(1, max_logits // (len(ids) * model.config.get_text_config().vocab_size))
        losses = []
        with bypass_base_model(model, output) as bypass:
            for start in range(0, hidden.shape[1], slice_tokens):
                rows = slice(start, start + slice_tokens)
                bypass.output["last_hidden_state"] = hidden[:, rows]
                logits = logits_of(model(ids[:, rows], use_cache=False))
                if not bypass.was_called:
                    break
                losses.append(_losses(logits, targets[:, rows]))
        if not losses:
            # The head calls a part of the base model instead (OPT's decoder).
            self.in_slices = False
            return self.whole(ids, targets, first_logit, **arguments)
        return torch.cat(losses, 1), output

    def whole(
        self, ids: Tensor, targets: Tensor, first_logit: int = 0, **arguments: Any
    ) -> tuple[Tensor, Any]:
        """As calling the object, with all logits in one pass."""
        output = self.model(ids, **arguments)
        logits = logits_of(output)[:, first_logit : first_logit + targets.shape[1]]
        return _losses(logits, targets), output


def logits_of(output: Any) -> Tensor:
    """Logits [batch, n, vocabulary] of an output: itself, its `logits`, or its first item."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
