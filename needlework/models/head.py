"""Run a model's head on given hidden states: its own forward, without the base model below."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class BaseModelBypass(nn.Module):
    """Replacement for the base model whose forward returns `output`; other attributes are `base`'s.

    `was_called` says whether its forward has run.
    """

    output: Any
    was_called: bool

    def __init__(self, base: nn.Module, output: Any):
        super().__init__()
        # Not as attributes, which would register `base` as a submodule.
        self.__dict__.update(_base=base, output=output, was_called=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_base"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["was_called"] = True
        return self.output


def has_head(model: nn.Module) -> bool:
    """Whether `model` is a transformers model with a head on a base model."""
    return isinstance(model, PreTrainedModel) and model.base_model is not model


@contextmanager
def bypass_base_model(model: PreTrainedModel, output: Any) -> Iterator[BaseModelBypass]:
    """Make the base model return a copy of `output` without computing anything.

    Where `was_called` stays false, the head calls a part of the base model instead (OPT's decoder).
    """
    prefix, base = model.base_model_prefix, model.base_model
    bypass = BaseModelBypass(base, copy.copy(output))
    setattr(model, prefix, bypass)
    try:
        yield bypass
    finally:
        setattr(model, prefix, base)
