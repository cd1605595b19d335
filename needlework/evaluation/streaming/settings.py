"""Validation of a StreamingEvaluator's arguments."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def require_integer(name: str, value: Any, minimum: int, none: str | None = None) -> None:
    """Fail unless `value` is an integer of at least `minimum`.

    Args:
        none: meaning of None, where it is allowed.

    Raises:
        ValueError: it is not.
    """
    if value is None and none is not None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        or_none = "" if none is None else f", or None for {none}"
        raise ValueError(f"{name} {value!r}: write an integer of at least {minimum}{or_none}")


def require_causal_lm(model: Any) -> None:
    """Fail unless `model` is a causal language model with a head.

    Raises:
        ValueError: it is not.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {kind} is not a torch module; pass an AutoModelForCausalLM")
    if not isinstance(model, PreTrainedModel):
        return
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: {kind} has an encoder; pass a decoder-only model")
    if model.base_model is model and model.get_output_embeddings() is None:
        raise ValueError(f"model: {kind} has no head; pass an AutoModelForCausalLM")


def resolve_device(model: nn.Module, name: str | torch.device | None) -> torch.device:
    """Return the device to read on.

    Args:
        name: None: the GPU if there is one. Ignored for quantized models and models spread over
            devices, which stay where they are.

    Raises:
        ValueError: there is no such device.
    """
    if isinstance(model, PreTrainedModel) and (
        getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    ):
        return model.device
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r}: is not available ({message}); write cpu, cuda, or None"
        ) from None
    return device
