"""Read an Infini model with its segments cut otherwise than its checkpoint says."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from transformers import PreTrainedModel

from needlework.config.attention import InfiniAlignment


def realigned(model: PreTrainedModel, system: InfiniAlignment) -> AbstractContextManager[None]:
    """Inside this context the model cuts its segments as `system` says.

    Raises:
        ValueError: the model has no Infini-attention.
    """
    if not hasattr(model.config, "infini"):
        raise ValueError(
            f"infini_alignment: model_type {model.config.model_type} has no Infini-attention; "
            "give an Infini model, or leave it out"
        )
    return _told(model, system)


@contextmanager
def _told(model: PreTrainedModel, system: InfiniAlignment) -> Iterator[None]:
    own = model.config.infini
    model.config.infini = {**own, "segment_alignment": system.segment_alignment}
    try:
        yield
    finally:
        model.config.infini = own
