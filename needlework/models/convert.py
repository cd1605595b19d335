"""Make an attention part of a model."""

import importlib

from transformers import PreTrainedModel

from needlework.config.attention import Attention


def convert(model: PreTrainedModel, attention: Attention | None) -> PreTrainedModel:
    """`model` with `attention` in place of its own, new parameters initialised; None: as it is."""
    if attention is None:
        return model
    module = importlib.import_module(attention.module)
    return module.convert(model, attention)
