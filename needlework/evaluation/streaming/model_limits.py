"""What a model can read: its vocabulary, its positions, and the chunk size that suits it."""

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.config.attention.base import Attention
from needlework.config.rope import positions_of
from needlework.evaluation.streaming.document_reader import DocumentReader

DEFAULT_CHUNK_SIZE = 8192
"""Tokens per chunk, if the model implies no size or a very large one."""


def vocabulary_size(model: nn.Module) -> int | None:
    """Number of ids that a model accepts, or None if unknown."""
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if isinstance(model, PreTrainedModel):
        embedding = model.get_input_embeddings()
    return None if embedding is None else embedding.num_embeddings


def context_span(model: nn.Module, attention: Attention | None) -> int:
    """Tokens of a model's segment or sliding window; 0 if it has neither."""
    if attention is not None and attention.context_tokens is not None:
        return attention.context_tokens
    if not isinstance(model, PreTrainedModel):
        return 0
    infini = getattr(model.config, "infini", None)
    if infini is not None:
        return infini["segment_length"]
    _, layers = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return max((layer.get("sliding_window") or 0 for layer in layers), default=0)


def default_chunk_size(model: nn.Module, attention: Attention | None, overlap: int) -> int:
    """A model's context span, or else its positions, in multiples of the system's chunk size.

    At most DEFAULT_CHUNK_SIZE positions if state is carried (no overlap).
    """
    if span := context_span(model, attention):
        return span
    positions = None
    if isinstance(model, PreTrainedModel):
        positions = positions_of(model.config.get_text_config().to_dict())
    if positions is None or not overlap:
        positions = min(positions or DEFAULT_CHUNK_SIZE, DEFAULT_CHUNK_SIZE)
    if attention is not None:
        multiple = attention.chunk_multiple
        positions = max(1, positions // multiple) * multiple
    return positions


def position_table_size(model: nn.Module) -> int | None:
    """Rows of a model's table of positions, learned or fixed, beyond which it fails.

    None for models without a table: rotary and relative positions are unlimited.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    config = model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [table for table in model.buffers() if table.ndim == 2]
    # OPT and similar models keep two rows for padding.
    has_table = any(positions <= len(table) <= positions + 2 for table in tables)
    return positions if has_table else None


def require_positions(model: nn.Module, reader: DocumentReader, window: int | None) -> None:
    """Fail if a document, or a window of it, is longer than the model's table of positions.

    Args:
        reader: at the start of a document.
        window: tokens of a strided window; None: state is carried through the document.

    Raises:
        ValueError: it is longer.
    """
    positions = position_table_size(model)
    if positions is None or len(reader.peek(positions + 2)) < positions + 2:
        return
    name = type(model).__name__
    if window is None:
        raise ValueError(
            f"{name}: has {positions} positions, and the text is longer; set max_tokens to at most "
            f"{positions + 1}, or set an overlap to read it in windows (strided)"
        )
    if window > positions + 1:
        raise ValueError(
            f"{name}: has {positions} positions, fewer than chunk_size {window}; write at most "
            f"{positions + 1}"
        )


def require_independence_of_length(system: Attention) -> None:
    """Fail if the blocks that a system keeps depend on the length of the whole text.

    Raises:
        ValueError: they do.
    """
    if key := system.prompt_length_key:
        raise ValueError(
            f"{system.type}: {key} depends on the length of the whole text, which a stream does "
            "not know; write 0 or leave it out, or set an overlap to read windows (strided)"
        )
