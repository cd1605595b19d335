"""Seconds of a call, and whether a bar is reached."""

import time
from collections.abc import Callable

import torch


def timed(function: Callable, device: torch.device) -> tuple:
    """What the function returns, and its seconds, until the device has done it."""
    _wait(device)
    started = time.perf_counter()
    result = function()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def verdict(bar: str, is_reached: bool) -> str:
    """The bar in words, reached or not."""
    return f"{bar}: {'reached' if is_reached else '**not reached**'}"
