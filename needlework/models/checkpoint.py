"""Open a Hugging Face checkpoint: a folder or a hub name, safetensors only."""

import importlib
import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
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
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in eval mode on `device` (the GPU if there is one) and its tokenizer.

    A checkpoint whose config.json names a `needlework_attention` gets that module imported first,
    which registers its classes with transformers.

    Raises:
        ValueError: the folder lacks config.json, or weights and config do not fit together.
    """
    _register_attention(path)
    kwargs = {"revision": revision} if revision else {}
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **kwargs)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **kwargs,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **kwargs)
    except OSError as error:
        raise ValueError(f"{path}: not a checkpoint that can be opened ({error})") from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"{path}: weights missing from the checkpoint: {names}, ...")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def _register_attention(path: str | Path) -> None:
    config_json = Path(path) / "config.json"
    if config_json.is_file():
        attention = json.loads(config_json.read_text()).get("needlework_attention")
        if attention is not None:
            importlib.import_module(f"needlework.attention.{attention}")
