"""Open and save Hugging Face checkpoints: a folder or a hub name, safetensors by default."""

import importlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from needlework.config.models.base import LocalModel
from needlework.config.opening import ModelSpec
from needlework.models.loading import explain_error, loading_arguments, out_of_device_memory
from needlework.models.special_ids import end_ids
from needlework.sources import hub

# Stages show their own progress bar.
disable_progress_bar()


def open_model(
    spec: ModelSpec, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Open a model in eval mode, and its tokenizer.

    The custom classes of a checkpoint with `needlework_attention` in its config.json are imported
    first. Pickled weights are read only with `allow_pickle` and without safetensors, and then by
    torch's reader that runs no code.

    Args:
        device: where the weights go if `spec.opening` does not place them; None: the GPU if there
            is one.

    Raises:
        ValueError: The folder lacks config.json, or weights and config do not fit together.
    """
    path, dtype = spec.path, getattr(torch, spec.dtype)
    kwargs = _source_arguments(spec)
    try:
        config = open_config(spec)
        placement = loading_arguments(spec, config)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=None if spec.allow_pickle else True,
            output_loading_info=True,
            **placement,
            **kwargs,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    except UnpicklingError:
        raise ValueError(
            f"{path}: its pickle files (.bin) hold more than tensors and could run code; save the "
            "weights as safetensors"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(explain_error(spec, error)) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"{path}: weights missing from the checkpoint: {names}, ...")
    devices = getattr(model, "hf_device_map", {}).values()
    if spec.opening.offload_folder is None and "disk" in devices:
        raise ValueError(out_of_device_memory(spec))
    if not placement.keys() & {"device_map", "distributed_config", "quantization_config"}:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), tokenizer


def open_config(spec: ModelSpec) -> PreTrainedConfig:
    """The config.json of a folder or a hub name.

    Raises:
        ValueError: It is missing, or this version of needlework or transformers does not support
            the model.
    """
    kwargs = _source_arguments(spec)
    if not Path(spec.path).is_dir():
        hub.unreachable()
    try:
        _register_attention(spec.path, kwargs)
        config = AutoConfig.from_pretrained(spec.path, **kwargs)
        _scale_positions(spec, config)
        _drop_invalid_pad(config)
        return config
    except (OSError, ValueError, ImportError) as error:
        if str(error).startswith(f"{spec.path}: "):
            raise
        raise ValueError(explain_error(ModelSpec(path=spec.path), error)) from None


def _scale_positions(spec: ModelSpec, config: PreTrainedConfig) -> None:
    """Replace the rotary scaling of `config` by that of `spec`, if it has one."""
    if spec.rope_scaling is None:
        return
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None)
    if not rope or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(
            f"{spec.path}: rope_scaling: the model has no rotary positions, or several kinds of "
            "them; remove it"
        )
    kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = spec.rope_scaling.keys()
    if scaling["rope_type"] in ("yarn", "llama3", "longrope"):
        original = rope.get("original_max_position_embeddings", text.max_position_embeddings)
        scaling.setdefault("original_max_position_embeddings", original)
    text.rope_parameters = {**kept, **scaling}


def _drop_invalid_pad(config: PreTrainedConfig) -> None:
    """Remove a pad token without an embedding, with which torch cannot make the embeddings."""
    for part in (config, config.get_text_config(decoder=True)):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
            part.pad_token_id = None


def config_of(model: LocalModel) -> PreTrainedConfig:
    """The config of a checkpoint of the experiment; see `LocalModel.config_module`."""
    return open_config(model.spec())


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Save a checkpoint, its weights (`state`, or the model's own) in one safetensors file.

    Every token that ends the model's answers is saved in generation_config.json.

    Raises:
        ValueError: The folder cannot be written.
    """
    ends = end_ids(model, tokenizer)
    if model.generation_config is not None and ends:
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    try:
        model.save_pretrained(folder, state_dict=state, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be written ({error})") from None


def _source_arguments(spec: ModelSpec) -> dict[str, Any]:
    revision = {"revision": spec.revision} if spec.revision else {}
    return {**revision, "trust_remote_code": spec.opening.trust_remote_code}


def _register_attention(path: str, kwargs: dict[str, Any]) -> None:
    config, _ = PreTrainedConfig.get_config_dict(path, **kwargs)
    attention = config.get("needlework_attention")
    if attention is None:
        return
    try:
        importlib.import_module(f"needlework.attention.methods.{attention}")
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: config.json needs needlework_attention = {attention!r}, which this version "
            "of needlework does not have; open it with the version that made it"
        ) from None
