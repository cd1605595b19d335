"""What is known of an experiment's models before any weights are opened."""

from needlework.config.attention.registry import attention_class
from needlework.config.experiment import Experiment

BEHIND_API = "runs behind an API, so its weights are not here; name another model"
"""The error of a key that needs the weights of such a model."""


def is_behind_api(experiment: Experiment, name: str) -> bool:
    """Whether there is a model `name` and its weights are not here."""
    model = experiment.models.get(name)
    return model is not None and model.remote is not None


def own_attention(experiment: Experiment, name: str) -> tuple[str, str] | None:
    """The model that put needlework attention into the weights of `name`, and its type.

    That is `name` itself or one that it starts from; None for stock attention.
    """
    for ancestor, model in experiment.ancestors(name):
        if model.own_attention is not None:
            return ancestor, model.own_attention
    return None


def max_positions(experiment: Experiment, name: str) -> int | None:
    """Positions that model `name` is made for; None if unknown or explicitly exceeded."""
    for _, model in experiment.ancestors(name):
        if model.local is None or model.local.allow_extrapolation:
            return None
        own = model.own_attention
        if own is not None and not attention_class(own).limits_positions:
            return None
        if model.parent is None:
            return model.positions
    return None
