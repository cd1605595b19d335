"""What a command line gives as an experiment file would: a model, an attention."""

from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from needlework.config.attention import Attention, Infini
from needlework.config.experiment import Experiment
from needlework.config.models import Checkpoint
from needlework.config.parsing.load import load_experiment
from needlework.models.checkpoint import open_config

NAME = "asked"
"""Of the model, the system and whatever else the experiment has one of."""


def mapping(option: str, text: str, key: str) -> dict[str, Any]:
    """`{...}` as YAML reads it, or `{key: text}` for anything else.

    Raises:
        ValueError: it begins as a mapping and is none.
    """
    if not text.lstrip().startswith("{"):
        return {key: text}
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(
            f"{option} {text}: is no mapping ({told}); write it as in an experiment file, such as "
            f"'{{{key}: ...}}'"
        ) from None


def experiment_of(
    model: dict[str, Any], attention: dict[str, Any] | None, **parts: Any
) -> tuple[Experiment, Attention | None]:
    """The experiment that the same keys make in a file, and the attention to put on its model.

    Infini-attention is the checkpoint's own where it has one (then there is nothing to put on);
    else it is put on with new parameters.

    Args:
        parts: other keys of the file.

    Raises:
        ValueError: as load_experiment.
    """
    converting = attention if attention and attention.get("type") == "infini" else None
    if converting:
        attention, model = None, {"allow_extrapolation": True, **model}
    system = {"model": NAME, "attention": attention}
    made = load_experiment(
        {"experiment": NAME, "models": {NAME: model}, "systems": {NAME: system}, **parts}
    )
    if not isinstance(made.models[NAME], Checkpoint):
        raise ValueError("--model: is none that is opened here; name a checkpoint, by its path")
    if converting:
        return made, _infini(made.models[NAME], converting)
    return made, made.systems[NAME].attention


def _infini(model: Checkpoint, given: dict[str, Any]) -> Infini | None:
    try:
        attention = TypeAdapter(Infini).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"--attention: {where} = {first['input']!r}: {first['msg']}") from None
    try:
        config = open_config(model.path, model.revision, model.trust_remote_code)
    except ValueError:
        return attention  # opening it says what is wrong
    if getattr(config, "needlework_attention", None) != "infini":
        return attention
    if len(given) > 1:
        raise ValueError(
            f"--attention: {model.path} has Infini-attention in its weights, with parameters of "
            "its own; write --attention infini"
        )
    return None
