"""Cross-entropy of each token, without ever holding the logits of all of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from needlework.models.head import bypass_base_model, has_head

LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**27}
"""Most logits, tokens * vocabulary, that are held together, by kind of device."""


class TokenLosses:
    """Losses of given tokens by any causal language model that returns logits.

    A model of transformers runs once without its head; then its own forward makes the logits of a
    few tokens at a time from the hidden states, with whatever it does to them (scales, caps).
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.in_slices = has_head(model)

    def __call__(
        self, ids: Tensor, targets: Tensor, first: int = 0, **arguments: Any
    ) -> tuple[Tensor, Any]:
        """Losses of `targets`, and what the model gave.

        Args:
            ids: what the model reads [batch, n], int64.
            targets: the tokens that logits first, first + 1, ... are to foretell [batch, m], int64.
            first: index of the logit for the first target.
            arguments: of the model's forward.

        Returns:
            float32 [batch, m], in nats; the output of the model (without head, if in slices).
        """
        if not self.in_slices:
            return self.whole(ids, targets, first, **arguments)
        output = self.model.base_model(ids, **arguments)
        hidden = output.last_hidden_state[:, first : first + targets.shape[1]]
        most = LOGITS_AT_ONCE.get(ids.device.type, LOGITS_AT_ONCE["cuda"])
        together = max(1, most // (len(ids) * self.model.config.get_text_config().vocab_size))
        losses = []
        with bypass_base_model(self.model, output) as bypass:
            for start in range(0, hidden.shape[1], together):
                rows = slice(start, start + together)
                bypass.output["last_hidden_state"] = hidden[:, rows]
                logits = logits_of(self.model(ids[:, rows], use_cache=False))
                if not bypass.was_called:
                    break
                losses.append(_losses(logits, targets[:, rows]))
        if not losses:
            # Its head asks a part of the base model instead (OPT's decoder).
            self.in_slices = False
            return self.whole(ids, targets, first, **arguments)
        return torch.cat(losses, 1), output

    def whole(
        self, ids: Tensor, targets: Tensor, first: int = 0, **arguments: Any
    ) -> tuple[Tensor, Any]:
        """The same with all logits at once."""
        output = self.model(ids, **arguments)
        return _losses(logits_of(output)[:, first : first + targets.shape[1]], targets), output


def logits_of(output: Any) -> Tensor:
    """The logits [batch, n, vocabulary] in a model's output: itself, its `logits`, or its first."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
