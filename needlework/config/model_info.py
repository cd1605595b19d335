"""What is known of an experiment's models before any is opened."""

import json
from pathlib import Path

from needlework.config.experiment import Experiment
from needlework.config.models import Api, Checkpoint, Derived, Pretrained
from needlework.config.paths import json_object

BEHIND_API = "is behind an API, so its weights are not here; name another model"
"""What is wrong where the weights of such a model are asked for."""


def is_behind_api(experiment: Experiment, name: str | None) -> bool:
    """Whether there is a model `name` and its weights are not here."""
    return isinstance(experiment.models.get(name), Api)


def converted_by(experiment: Experiment, name: str) -> tuple[str, str] | None:
    """The model that brought `name` an attention of its own, itself or a base, and which."""
    model = experiment.models.get(name)
    if isinstance(model, Derived):
        if model.attention is not None and model.attention.converts_model:
            return name, model.attention.type
        return converted_by(experiment, model.base)
    if isinstance(model, Checkpoint) and (config := Path(model.path) / "config.json").is_file():
        kind = (json_object(config) or {}).get("needlework_attention")
        return (name, kind) if kind else None
    return None


def max_positions(experiment: Experiment, name: str) -> int | None:
    """Positions that model `name` is made for; None where nothing says so, or more are meant."""
    model = experiment.models[name]
    if isinstance(model, Api) or model.allow_extrapolation:
        return None
    if isinstance(model, Derived):
        # Infini-attention counts positions within a segment, so none is ever too far.
        local = model.attention is not None and model.attention.type == "infini"
        return None if local else max_positions(experiment, model.base)
    if isinstance(model, Pretrained):
        return model.pretrain.max_positions
    config_json = Path(model.path) / "config.json"
    if not config_json.is_file():
        return None
    found = json.loads(config_json.read_text())
    if found.get("needlework_attention") == "infini":
        return None
    return found.get("text_config", found).get("max_position_embeddings")
