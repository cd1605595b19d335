"""Devices by name, and this machine measured as one in about a second."""

import time
from collections.abc import Callable

import psutil
import torch

from needlework.config.devices import Device, devices

NAME = "here"


def device(name: str) -> Device:
    """The device of that name in resources/devices.yaml; `here`: this machine, one core or its
    first GPU.

    Raises:
        ValueError: the name is unknown.
    """
    if name == NAME:
        return _measured()
    if name not in devices():
        raise ValueError(
            f"device: {name!r} is unknown; write one of {', '.join([NAME, *devices()])}"
        )
    return devices()[name]


def _measured() -> Device:
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = psutil.virtual_memory().total
    width = 8192 if place == "cuda" else 512
    flops = {
        name: 2 * width**3 * _calls_per_second(lambda x: x @ x, torch.ones(width, width, **made))
        for name, made in (
            (name, {"dtype": getattr(torch, name), "device": place})
            for name in ("float32", "bfloat16")
        )
    }
    large = torch.ones(2**26, dtype=torch.uint8, device=place)
    return Device(
        memory_bytes=memory,
        **flops,
        bytes_per_second=2 * large.nbytes * _calls_per_second(torch.clone, large),
        # Peaks are measured, not published; the rest is lost to other operations.
        efficiency=0.8,
        gpu=place == "cuda",
    )


def _calls_per_second(do: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Best of four runs."""
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        do(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 1 / best
