"""The loss on held-out text while a model is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.evaluation.streaming.token_source import TokenFile


class HeldOut:
    """Loss of a model on the first tokens of a file, in nats a token; the model stays as it is.

    Args:
        tokens: a .npy of token ids.
        starts: a .npy of where its documents begin.
        most_tokens: read at most these.
        reading: further arguments of a StreamingEvaluator.
    """

    def __init__(
        self, tokens: str | Path, starts: str | Path, most_tokens: int, reading: dict[str, Any]
    ):
        self.tokens = TokenFile(tokens, starts=np.load(starts))
        self.most_tokens, self.reading = most_tokens, reading

    def __call__(self, model: PreTrainedModel) -> float:
        """Raises ValueError as `StreamingEvaluator.evaluate_streaming`."""
        evaluator = StreamingEvaluator(
            model, device=str(model.device), verbose=False, **self.reading
        )
        # Whether a text is read may not decide what training draws next.
        with torch.random.fork_rng():
            return evaluator.evaluate_streaming(self.tokens, self.most_tokens)["loss"]
