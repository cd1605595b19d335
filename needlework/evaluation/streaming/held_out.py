"""Loss on held-out text during training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.evaluation.streaming.token_source import TokenFile


class HeldOut:
    """Loss of a model on the first tokens of a file, in nats per token; the model is unchanged.

    Args:
        tokens: .npy file of token ids.
        starts: .npy file of the indices at which documents begin.
        max_tokens: tokens to read at most.
        settings: further arguments of StreamingEvaluator.
    """

    def __init__(
        self, tokens: str | Path, starts: str | Path, max_tokens: int, settings: dict[str, Any]
    ):
        self.tokens = TokenFile(tokens, starts=np.load(starts))
        self.max_tokens, self.settings = max_tokens, settings

    def __call__(self, model: PreTrainedModel) -> float:
        """Evaluate the loss.

        Raises:
            ValueError: as `StreamingEvaluator.evaluate_streaming`.
        """
        evaluator = StreamingEvaluator(
            model, device=str(model.device), verbose=False, **self.settings
        )
        # Validation must not change the random numbers of training.
        with torch.random.fork_rng():
            return evaluator.evaluate_streaming(self.tokens, self.max_tokens)["loss"]
