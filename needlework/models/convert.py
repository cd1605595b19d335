"""Make an attention part of a model."""

from transformers import PreTrainedModel

from needlework.attention.base import Conversion, method_of
from needlework.config.attention.base import Attention


def convert(model: PreTrainedModel, attention: Attention | None) -> PreTrainedModel:
    """Replace the model's attention by `attention`, with new parameters initialised.

    Returns the model unchanged if `attention` is None.
    """
    if attention is None:
        return model
    method = method_of(attention)
    if not isinstance(method, Conversion):
        raise ValueError(
            f"{attention.type}: is not part of a model; write it as `attention` of a system"
        )
    return method.convert(model)
