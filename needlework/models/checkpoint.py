"""Open and save Hugging Face checkpoints: a folder or a hub name, safetensors unless asked."""

import importlib
from pathlib import Path
from pickle import UnpicklingError

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

from needlework.config.opening import Opening
from needlework.models.loading import arguments, explained, no_room
from needlework.sources import hub

# The stages have a bar of their own.
disable_progress_bar()
PLAIN = Opening()
"""Weights in dtype, whole, in one process."""


def open_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    opening: Opening = PLAIN,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in eval mode, held as `opening` says, and its tokenizer.

    Where `opening` leaves that open it lies on `device`: the GPU if there is one.

    A checkpoint whose config.json names a `needlework_attention` gets that module imported first,
    which registers its classes with transformers. Pickled weights are read only where
    `allow_pickle` is set and there are no others, and then by torch's reader that runs no code.

    Raises:
        ValueError: the folder lacks config.json, or weights and config do not fit together.
    """
    kwargs = {"revision": revision} if revision else {}
    kwargs["trust_remote_code"] = opening.trust_remote_code
    try:
        config = open_config(path, revision, opening.trust_remote_code)
        held = arguments(path, config, getattr(torch, dtype), opening)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **held,
            **kwargs,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    except UnpicklingError:
        raise ValueError(
            f"{path}: its pickle files (.bin) hold more than tensors, which could run code: not "
            "opened; save the weights as safetensors"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(explained(path, error, opening)) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"{path}: weights missing from the checkpoint: {names}, ...")
    if opening.offload_folder is None and "disk" in getattr(model, "hf_device_map", {}).values():
        raise ValueError(no_room(path, opening))
    if not held.keys() & {"device_map", "distributed_config", "quantization_config"}:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), tokenizer


def open_config(
    path: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The config.json of a folder or a hub name.

    Raises:
        ValueError: there is none, or this version of needlework or transformers does not know what
            it asks for.
    """
    kwargs = {"revision": revision} if revision else {}
    kwargs["trust_remote_code"] = trust_remote_code
    if not Path(path).is_dir():
        hub.unreachable()
    try:
        _register_attention(path, kwargs)
        return AutoConfig.from_pretrained(path, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(explained(path, error, PLAIN)) from None


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Save a checkpoint, its weights (`state`, or the model's own) in one safetensors file.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        model.save_pretrained(folder, state_dict=state, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be written ({error})") from None


def _register_attention(path: str | Path, kwargs: dict) -> None:
    config, _ = PreTrainedConfig.get_config_dict(path, **kwargs)
    attention = config.get("needlework_attention")
    if attention is None:
        return
    try:
        importlib.import_module(f"needlework.attention.methods.{attention}")
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: config.json asks for needlework_attention = {attention!r}, which this "
            "version of needlework does not have; open it with the version that made it"
        ) from None
