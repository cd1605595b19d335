"""Which prefill kernel is faster, measured once per machine and case, then kept in a file.

Kernels agree only up to rounding, so a choice must not change between runs: the first clear
measurement on a machine stays. Compiling takes time, so `compiled` has to be clearly faster; if
rounds disagree, as under changing load, the choice lasts for the process only.
NEEDLEWORK_ATTENTION_KERNEL=gather or =compiled fixes the kernel instead.
"""

import hashlib
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from time import perf_counter
from typing import Literal, get_args

import torch

VARIABLE = "NEEDLEWORK_ATTENTION_KERNEL"
ROUNDS = (3, 5)
"""Fewest and most measured rounds, after one that compiles."""
SECONDS = 4
"""After this time and the fewest rounds no further round begins."""
GAIN = 1.2
"""How many times faster than `gather` a kernel that compiles must be."""

Name = Literal["gather", "compiled"]
Kernels = dict[Name, Callable[[], object]]


def fixed() -> Name | None:
    """The kernel that the environment asks for.

    Raises:
        ValueError: there is no such kernel.
    """
    value = os.environ.get(VARIABLE)
    names = get_args(Name)
    if not value:
        return None
    if value not in names:
        raise ValueError(f"{VARIABLE}: {value!r} is not a kernel; write {' or '.join(names)}")
    return "gather" if value == "gather" else "compiled"


def faster(case: tuple, device: torch.device, kernels: Kernels) -> Name:
    """The faster kernel for a case on this machine, from its file; measured if there is none.

    Args:
        case: what decides speed, such as dtype and dimensions.
        kernels: calls of equal work for the measurement.
    """
    machine = (*_machine(device.type), torch.__version__, torch.get_num_threads())
    label = " ".join(map(str, (*machine, *case)))
    file = folder() / f"{hashlib.sha256(label.encode()).hexdigest()[:24]}.txt"
    if (name := _stored(file, label)) is not None:
        return name
    gains = _gains(kernels, device)
    name = "compiled" if median(gains) >= GAIN else "gather"
    is_clear = (min(gains) >= GAIN) == (max(gains) >= GAIN)
    return _store(file, label, name) if is_clear else name


def folder() -> Path:
    """Where choices are kept: in XDG_CACHE_HOME, else in ~/.cache."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_home).expanduser() / "needlework" / "kernels"


def _gains(kernels: Kernels, device: torch.device) -> list[float]:
    """How many times faster `compiled` is, measured in turns, so that other load affects both."""

    def seconds(name: Name) -> float:
        started = perf_counter()
        kernels[name]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - started

    seconds("compiled")
    seconds("gather")
    gains: list[float] = []
    end = perf_counter() + SECONDS
    fewest, most = ROUNDS
    while len(gains) < fewest or (len(gains) < most and perf_counter() < end):
        gains.append(seconds("gather") / seconds("compiled"))
    return gains


def _stored(file: Path, label: str) -> Name | None:
    try:
        name, of = file.read_text().splitlines()
    except (OSError, ValueError):
        return None
    if of != label:
        return None
    return "gather" if name == "gather" else "compiled"


def _store(file: Path, label: str, name: Name) -> Name:
    """Keep a choice, unless another process was first: then its choice."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, suffix=".part") as part:
            part.write(f"{name}\n{label}\n")
            part.flush()
            os.link(part.name, file)
    except FileExistsError:
        return _stored(file, label) or name
    except OSError:
        pass  # without a folder to write, the choice lasts for the process
    return name


@cache
def _machine(device: str) -> tuple[str, ...]:
    """What the processor is called."""
    if device == "cuda":
        return (torch.cuda.get_device_name(),)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line for line in lines if line.startswith("model name")), platform.processor())
    return platform.machine(), model, torch.backends.cpu.get_cpu_capability()
