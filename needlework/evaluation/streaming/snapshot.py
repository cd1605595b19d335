"""Conversion of a cache to plain structure and tensors, and back, without pickle."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Structure = dict[str, Any]
"""JSON values; tensors are replaced by their index."""
_CONCATENATING = (DynamicLayer.update, DynamicSlidingWindowLayer.update)
"""Updates that replace keys and values by new tensors, and never change them in place."""


def freeze(value: Any, tensors: list[Tensor], by_length: bool = False) -> Structure:
    """Return the structure of `value`, and append its tensors to `tensors`.

    Walks attributes, lists and dicts (keys are numbers or text). Tensors that later forwards may
    change in place are copied. Values that are not data (dtypes, functions, modules) are left out.

    Args:
        by_length: store only the length of keys and values that grow by concatenation. This
            suffices to go back, and holds no tensor that the cache has released.
    """
    if isinstance(value, Tensor):
        tensors.append(value.detach().clone())
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, dict):
        return {"dict": [[key, freeze(item, tensors, by_length)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [freeze(item, tensors, by_length) for item in value]}
    if not hasattr(value, "__dict__") or isinstance(value, type | nn.Module):
        return {"left": None}
    attributes = dict(vars(value))
    concatenated: dict[str, Tensor] = {}
    if getattr(type(value), "update", None) in _CONCATENATING:
        concatenated = {
            name: attributes.pop(name)
            for name in ("keys", "values")
            if isinstance(attributes.get(name), Tensor)
        }
    structure = {name: freeze(item, tensors, by_length) for name, item in attributes.items()}
    for name, tensor in concatenated.items():
        if by_length and not value.is_sliding and tensor.ndim == 4:
            structure[name] = {"length": tensor.shape[2]}
        else:
            tensors.append(tensor)
            structure[name] = {"tensor": len(tensors) - 1}
    return {"object": structure}


def thaw(structure: Structure, tensors: list[Tensor], target: Any = None) -> Any:
    """Invert `freeze`.

    Args:
        tensors: not copied; each moves to the device of the tensor that it replaces.
        target: a value of the same structure. Its objects are filled in place, as thaw creates
            none.

    Raises:
        ValueError: `target` has no object where the structure has one.
    """
    ((kind, content),) = structure.items()
    if kind == "tensor":
        tensor = tensors[content]
        return tensor.to(target.device) if isinstance(target, Tensor) else tensor
    if kind == "length":
        return target[:, :, :content]
    if kind == "value":
        return content
    if kind == "dict":
        targets = target if isinstance(target, dict) else {}
        return {key: thaw(item, tensors, targets.get(key)) for key, item in content}
    if kind in ("list", "tuple"):
        below = list(target) if isinstance(target, list | tuple) else []
        below += [None] * (len(content) - len(below))
        items = [thaw(item, tensors, other) for item, other in zip(content, below, strict=False)]
        return items if kind == "list" else tuple(items)
    if kind == "object":
        if target is None:
            raise ValueError("the checkpoint belongs to another model; delete it")
        for name, item in content.items():
            setattr(target, name, thaw(item, tensors, getattr(target, name, None)))
        return target
    return target


def to_named_cpu(tensors: list[Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU by index, for safetensors: none share memory."""
    return {str(i): x.to("cpu").contiguous().clone() for i, x in enumerate(tensors)}


def from_named_cpu(tensors: dict[str, Tensor], device: torch.device) -> list[Tensor]:
    """Invert `to_named_cpu`, on `device`."""
    return [tensors[str(i)].to(device) for i in range(len(tensors))]
