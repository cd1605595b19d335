"""Whether a prompt fits on a device, and which changes would make it fit."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from needlework.attention.base import Computation
from needlework.config.devices import Device
from needlework.models.loading import PREFILL_CHUNKS, prefills_in_chunks, quantizes_cache
from needlework.planning.cost import CONTEXT_BYTES, Cost, Model

MAX_DEVICES = 64
_MIN_TOKENS = 512
"""Shortest length that remedies suggest."""


def fits(model: Model, cost: Cost, device: Device) -> bool:
    """Whether the prompt fits on the devices that share the model, or with offloaded weights."""
    if model.opening.cpu_offload and device.gpu:
        # Offloading keeps at least two layers' weights on the device.
        two_layers = 2 * cost.weight_bytes // max(1, len(model.shape.layers))
        required = min(two_layers, cost.weight_bytes) + cost.cache_bytes + cost.activation_bytes
        if required + CONTEXT_BYTES <= device.memory_bytes:
            return True
    number = devices_needed(cost, device)
    return number is not None and number <= model.opening.devices


def devices_needed(cost: Cost, device: Device) -> int | None:
    """Fewest devices that fit weights and cache, split evenly by layers; None: above MAX_DEVICES.

    Each also holds the activations of the layer it runs: ceil((weights + cache) / (memory -
    activations - context)).
    """
    overhead = CONTEXT_BYTES if device.gpu else cost.process_bytes
    room = device.memory_bytes - overhead - cost.activation_bytes
    if room <= 0:
        return None
    number = math.ceil((cost.weight_bytes + cost.cache_bytes) / room)
    return number if number <= MAX_DEVICES else None


def remedies(
    open_as: Callable[..., Model],
    method: Computation | None,
    tokens: int,
    device: Device,
) -> Iterator[str]:
    """Single changes that would make the prompt fit, mildest first.

    Args:
        open_as: opens the model in a dtype ("": its own) and with changed keys of its Opening.
        method: applied to the model; None: its own attention.
        tokens: of prompt and answer.
        device: to fit on.
    """
    own = open_as("")
    opening, shape = own.opening, own.shape

    def cost_as(dtype: str = "", **changed: Any) -> tuple[Model, Cost]:
        model = open_as(dtype, **changed)
        return model, model.cost(method, tokens, device)

    def helps(dtype: str = "", **changed: Any) -> bool:
        return fits(*cost_as(dtype, **changed), device)

    if shape.dtype == "float32" and helps("bfloat16"):
        yield "dtype: bfloat16"
    kernels = shape.linear_kernels if device.gpu and own.own is None else ()
    for kernel in kernels:
        if opening.attn_implementation != kernel and helps(attn_implementation=kernel):
            yield f"attn_implementation: {kernel}"
    current = min(tokens, opening.prefill_chunk_tokens or tokens)
    multiple = 1 if method is None else method.system.chunk_multiple
    chunks = [size for size in PREFILL_CHUNKS if size < current and size % multiple == 0]
    chunks = chunks if prefills_in_chunks(shape.model.config) else []
    for size in chunks:
        if helps(prefill_chunk_tokens=size):
            yield f"prefill_chunk_tokens: {size}"
            break
    for quantization in ("int8", "nf4"):
        if opening.quantization is None and helps("bfloat16", quantization=quantization):
            yield f"quantization: {quantization}"
    can_quantize_cache = (
        own.own is None and opening.cache == "dynamic" and quantizes_cache(shape.text)
    )
    if can_quantize_cache and helps(cache="quantized"):
        yield "cache: quantized"
    if device.gpu and not opening.cpu_offload and helps(cpu_offload=True):
        gib = own.cost(method, tokens, device).weight_bytes / 2**30
        yield f"device_map: auto and cpu_offload: true ({gib:.0f} GiB of main memory)"
    fewer = tokens // 2
    while fewer >= _MIN_TOKENS:
        if fits(own, own.cost(method, fewer, device), device):
            yield f"at most {fewer:,} tokens"
            break
        fewer //= 2
    if device.gpu:
        changes: list[dict[str, Any]] = [{}]
        changes += [{"attn_implementation": kernel} for kernel in kernels]
        changes += [{"prefill_chunk_tokens": size} for size in chunks]
        for changed in changes:
            number = devices_needed(cost_as(**changed)[1], device)
            if number is not None and number > opening.devices:
                extra = "".join(f" and {key}: {value}" for key, value in changed.items())
                yield f"{number} devices (pp: {number}{extra})"
                break
