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

# The stages have a bar of their own.
disable_progress_bar()


def open_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in eval mode on `device` (the GPU if there is one) and its tokenizer.

    A checkpoint whose config.json names a `needlework_attention` gets that module imported first,
    which registers its classes with transformers. Pickled weights are read only where
    `allow_pickle` is set and there are no others, and then by torch's reader that runs no code.

    Raises:
        ValueError: the folder lacks config.json, or weights and config do not fit together.
    """
    kwargs = {"revision": revision} if revision else {}
    try:
        _register_attention(path, kwargs)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **kwargs)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=False,
            output_loading_info=True,
            **kwargs,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **kwargs)
    except OSError as error:
        raise ValueError(f"{path}: not a checkpoint that can be opened ({error})") from None
    except UnpicklingError:
        raise ValueError(
            f"{path}: its pickle files (.bin) hold more than tensors, which could run code: not "
            "opened; save the weights as safetensors"
        ) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"{path}: weights missing from the checkpoint: {names}, ...")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


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
        importlib.import_module(f"needlework.attention.{attention}")
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: config.json asks for needlework_attention = {attention!r}, which this "
            "version of needlework does not have; open it with the version that made it"
        ) from None
