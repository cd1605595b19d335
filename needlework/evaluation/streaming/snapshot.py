"""A cache taken apart into plain structure and tensors, and put together again: no pickle."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Plain = dict[str, Any]
"""Structure as JSON has it; tensors are named by their number."""
_JOINING = (DynamicLayer.update, DynamicSlidingWindowLayer.update)


def freeze(value: Any, tensors: list[Tensor], by_length: bool = False) -> Plain:
    """The structure of `value`, whose tensors are appended to `tensors`.

    Walks attributes, lists and dicts (keys are numbers or text). Tensors that later forwards may
    change in place are copied; keys and values that are joined anew each time never are. What is no
    data (dtypes, functions, modules) is left out.

    Args:
        by_length: of keys and values that only ever grow, note the length: enough to go back, and
            nothing is held that the cache has let go.
    """
    if isinstance(value, Tensor):
        tensors.append(value.detach().clone())
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, dict):
        return {"dict": [[key, freeze(one, tensors, by_length)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [freeze(one, tensors, by_length) for one in value]}
    if not hasattr(value, "__dict__") or isinstance(value, type | nn.Module):
        return {"left": None}
    held = dict(vars(value))
    joined = {}
    if getattr(type(value), "update", None) in _JOINING:
        joined = {k: held.pop(k) for k in ("keys", "values") if isinstance(held.get(k), Tensor)}
    frozen = {name: freeze(one, tensors, by_length) for name, one in held.items()}
    for name, one in joined.items():
        if by_length and not value.is_sliding and one.ndim == 4:
            frozen[name] = {"length": one.shape[2]}
        else:
            tensors.append(one)
            frozen[name] = {"tensor": len(tensors) - 1}
    return {"object": frozen}


def thaw(frozen: Plain, tensors: list[Tensor], onto: Any = None) -> Any:
    """`freeze` undone. Objects are not made, but filled: `onto` is one of the same structure.

    Tensors get the device of those in `onto`; they are not copied.

    Raises:
        ValueError: there is an object for which `onto` has none.
    """
    ((kind, held),) = frozen.items()
    if kind == "tensor":
        tensor = tensors[held]
        return tensor.to(onto.device) if isinstance(onto, Tensor) else tensor
    if kind == "length":
        return onto[:, :, :held]
    if kind == "value":
        return held
    if kind == "dict":
        below = onto if isinstance(onto, dict) else {}
        return {key: thaw(one, tensors, below.get(key)) for key, one in held}
    if kind in ("list", "tuple"):
        below = list(onto) if isinstance(onto, list | tuple) else []
        below += [None] * (len(held) - len(below))
        made = [thaw(one, tensors, other) for one, other in zip(held, below, strict=False)]
        return made if kind == "list" else tuple(made)
    if kind == "object":
        if onto is None:
            raise ValueError("the saved state is of another model; begin anew without it")
        for name, one in held.items():
            setattr(onto, name, thaw(one, tensors, getattr(onto, name, None)))
        return onto
    return onto


def on_cpu(tensors: list[Tensor]) -> dict[str, Tensor]:
    """By number, as safetensors takes them: no two share memory."""
    return {str(i): x.to("cpu").contiguous().clone() for i, x in enumerate(tensors)}


def numbered(tensors: dict[str, Tensor], device: torch.device) -> list[Tensor]:
    """`on_cpu` undone, on `device`."""
    return [tensors[str(i)].to(device) for i in range(len(tensors))]
