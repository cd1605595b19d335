"""Timing of calls on a device, and comparison with targets."""

import time
from collections.abc import Callable

import torch


def timed(function: Callable, device: torch.device) -> tuple:
    """Result and seconds of a call, including the work it leaves queued on the device."""
    _wait(device)
    started = time.perf_counter()
    result = function()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def verdict(target: str, is_reached: bool) -> str:
    """The target, and whether it was reached."""
    return f"{target}: {'reached' if is_reached else '**not reached**'}"
