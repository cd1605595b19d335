"""A model's own head on hidden states: its forward, with the part below the head left out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class StandIn(nn.Module):
    """Answers in place of `base` with `output`; in all else it is `base`."""

    def __init__(self, base: nn.Module, output: Any):
        super().__init__()
        self.__dict__.update(_base=base, output=output, was_asked=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_base"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["was_asked"] = True
        return self.output


def has_head(model: nn.Module) -> bool:
    """Whether `model` is one of transformers with a head on a base model."""
    return isinstance(model, PreTrainedModel) and model.base_model is not model


@contextmanager
def standing_in(model: PreTrainedModel, output: Any) -> Iterator[StandIn]:
    """Within, the model's part without head answers at once, with a copy of `output`.

    Where `was_asked` stays false, the head asks a part of the base model instead (OPT's decoder).
    """
    prefix, base = model.base_model_prefix, model.base_model
    stand_in = StandIn(base, copy.copy(output))
    setattr(model, prefix, stand_in)
    try:
        yield stand_in
    finally:
        setattr(model, prefix, base)
