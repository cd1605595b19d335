"""The layers of a model that attend."""

from torch import nn
from transformers import PreTrainedModel


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention modules of a model's layers, in order; `layer_idx` is a layer's number."""
    return [
        module
        for module in model.base_model.modules()
        if "Attention" in type(module).__name__
        and isinstance(getattr(module, "layer_idx", None), int)
    ]
