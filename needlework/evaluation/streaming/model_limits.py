"""What a model can read: its vocabulary, and the positions that it has a table of."""

from torch import nn
from transformers import PreTrainedModel

from needlework.config.attention import Attention
from needlework.evaluation.streaming.document_reader import Reader


def vocabulary_of(model: nn.Module) -> int | None:
    """Number of ids that a model knows; None: it does not say."""
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if isinstance(model, PreTrainedModel):
        embedding = model.get_input_embeddings()
    return None if embedding is None else embedding.num_embeddings


def positions_of(model: nn.Module) -> int | None:
    """Positions that a model has in a table, learned or fixed, beyond which it fails; None where it
    has no table (rotary and relative positions go on)."""
    if not isinstance(model, PreTrainedModel):
        return None
    config = model.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [table for table in model.buffers() if table.ndim == 2]
    # OPT and its like keep two rows for padding.
    return most if any(most <= len(table) <= most + 2 for table in tables) else None


def require_positions(model: nn.Module, reader: Reader, window: int | None) -> None:
    """
    Args:
        reader: of a document, at its begin.
        window: tokens of a strided window; None: state is carried through the document.

    Raises:
        ValueError: a token would stand beyond the model's table of positions.
    """
    most = positions_of(model)
    if most is None or len(reader.ahead(most + 2)) < most + 2:
        return
    name = type(model).__name__
    if window is None:
        raise ValueError(
            f"{name}: knows {most} positions, and the text is longer; set max_tokens of at most "
            f"{most + 1}, or an overlap, which reads it in windows (strided)"
        )
    if window > most + 1:
        raise ValueError(
            f"{name}: knows {most} positions, fewer than chunk_size {window} reads; write at most "
            f"{most + 1}"
        )


def require_no_end(system: Attention) -> None:
    """
    Raises:
        ValueError: what `system` keeps depends on the length of the whole text.
    """
    if key := system.prompt_length_key:
        raise ValueError(
            f"{system.type}: {key} counts on the text's end, which a stream does not know; write 0 "
            "or leave it out, or set an overlap, which reads it in windows (strided)"
        )
