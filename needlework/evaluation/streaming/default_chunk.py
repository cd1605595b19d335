"""The chunk that suits a model: its own segment, window, or positions."""

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.config.attention import Attention

USUAL_CHUNK = 8192
"""Tokens a chunk, where a model names none or very many."""


def reach_of(model: nn.Module, attention: Attention | None) -> int:
    """Tokens behind which a model leaves something: its segment or window; 0 where it has none."""
    if attention is not None and attention.context_tokens is not None:
        return attention.context_tokens
    if not isinstance(model, PreTrainedModel):
        return 0
    infini = getattr(model.config, "infini", None)
    if infini is not None:
        return infini["segment_length"]
    _, kinds = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return max((kind.get("sliding_window") or 0 for kind in kinds), default=0)


def own_chunk(model: nn.Module, attention: Attention | None, overlap: int) -> int:
    """The reach of a model; else its positions, where state is carried at most USUAL_CHUNK.

    Whole blocks where the system has some.
    """
    if reach := reach_of(model, attention):
        return reach
    positions = None
    if isinstance(model, PreTrainedModel):
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or not overlap:
        positions = min(positions or USUAL_CHUNK, USUAL_CHUNK)
    if attention is not None:
        multiple = attention.chunk_multiple
        positions = max(1, positions // multiple) * multiple
    return positions
