"""An experiment with one model, system and cell, from options of the command line."""

from typing import Any

import yaml
from pydantic import ValidationError

from needlework.config.attention.base import Attention
from needlework.config.attention.registry import attention_class
from needlework.config.experiment import Experiment
from needlework.config.models.base import LocalModel
from needlework.config.opening import ModelSpec
from needlework.config.parsing.load import load_experiment
from needlework.models.checkpoint import open_config

NAME = "inline"
"""Name of the model, the system, the task and the stream."""


def parse_mapping(option: str, text: str, key: str) -> dict[str, Any]:
    """`{...}` as a YAML mapping; any other text as `{key: text}`.

    Raises:
        ValueError: the text starts with a brace but is not YAML.
    """
    if not text.lstrip().startswith("{"):
        return {key: text}
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(
            f"{option} {text}: not a mapping ({reason}); write it as in an experiment file, such "
            f"as '{{{key}: ...}}'"
        ) from None


def inline_experiment(
    model: dict[str, Any], attention: dict[str, Any] | None, **sections: Any
) -> tuple[Experiment, LocalModel, Attention | None]:
    """Build the experiment that an experiment file with the same keys would describe.

    Args:
        model, attention: their keys in an experiment file.
        sections: other top-level keys.

    Returns:
        The experiment, its model, and the attention to apply to it. One that converts models is
        applied, with untrained parameters, only if the checkpoint does not have it.

    Raises:
        ValueError: as `load_experiment`, or the model is not a checkpoint.
    """
    method = Attention if attention is None else attention_class(str(attention.get("type")))
    converts = method.converts_model
    if converts and not method.limits_positions:
        model = {"allow_extrapolation": True, **model}
    system = {"model": NAME, "attention": None if converts else attention}
    try:
        experiment = load_experiment(
            {"experiment": NAME, "models": {NAME: model}, "systems": {NAME: system}, **sections}
        )
    except ValueError as error:
        raise ValueError(_options_for_keys(str(error))) from None
    checkpoint = experiment.models[NAME].local
    if checkpoint is None or checkpoint.weights_path is None:
        raise ValueError("--model: not a checkpoint; write a path, or '{path: ...}'")
    if attention is not None and converts:
        return experiment, checkpoint, _conversion(checkpoint.spec(), method, attention)
    return experiment, checkpoint, experiment.systems[NAME].attention


def _options_for_keys(message: str) -> str:
    """An error of the experiment, with the command's options in place of its keys."""
    return (
        message.replace(f"of model `{NAME}`", "of the model")
        .replace(f"models.{NAME}", "--model")
        .replace(f"systems.{NAME}.attention", "--attention")
        .replace("lengths.0", "--context-length")
    )


def _conversion(spec: ModelSpec, method: type[Attention], keys: dict[str, Any]) -> Attention | None:
    """Attention to convert a checkpoint to; None if it is part of the checkpoint already."""
    try:
        attention = method.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"--attention: {key} = {first['input']!r}: {first['msg']}") from None
    try:
        config = open_config(spec)
    except ValueError:
        return attention  # opening the model will report the error
    if getattr(config, "needlework_attention", None) != attention.type:
        return attention
    if len(keys) > 1:
        raise ValueError(
            f"--attention: {spec.path} has {attention.type} attention with its own parameters; "
            f"write --attention {attention.type}"
        )
    return None
