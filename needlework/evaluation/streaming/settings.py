"""What a StreamingEvaluator is given, looked at before any work."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def require_whole(name: str, value: Any, least: int, none: str | None = None) -> None:
    """
    Raises:
        ValueError: `value` is no whole number of at least `least`, nor None where that has the
            meaning `none`.
    """
    if value is None and none is not None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        or_none = "" if none is None else f", or None for {none}"
        raise ValueError(f"{name} {value!r}: write a whole number, {least} or more{or_none}")


def require_causal(model: Any) -> None:
    """
    Raises:
        ValueError: `model` is none that could foretell the next token.
    """
    given = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {given} is no torch module; give what AutoModelForCausalLM loads")
    if not isinstance(model, PreTrainedModel):
        return
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: {given} has an encoder; give a decoder-only model")
    if model.base_model is model and model.get_output_embeddings() is None:
        raise ValueError(f"model: {given} has no head; give what AutoModelForCausalLM loads")


def device_of(model: nn.Module, name: str | torch.device | None) -> torch.device:
    """The device to read on; None: the GPU if there is one, or where the model was spread.

    Raises:
        ValueError: there is no such device.
    """
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        # It stays where it was put, maybe on several devices.
        return model.device
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r}: not to be had here ({told}); write cpu, cuda, or None"
        ) from None
    return device
