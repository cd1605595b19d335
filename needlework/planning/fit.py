"""Whether a prompt fits on a device, and what would make it fit."""

import math
from collections.abc import Callable, Iterator

from needlework.attention.base import Computation
from needlework.config.devices import Device
from needlework.models.loading import PREFILL_CHUNKS, prefills_in_chunks, quantizes_cache
from needlework.planning.cost import CONTEXT_BYTES, Cost, Model

MOST_DEVICES = 64
_SHORTEST = 512


def fits(model: Model, cost: Cost, device: Device) -> bool:
    """Whether it does on the devices that share the model out, or with what is offloaded."""
    if model.opening.cpu_offload and device.gpu:
        # At least two layers of the weights at a time.
        least = 2 * cost.weight_bytes // max(1, len(model.shape.layers))
        held = min(least, cost.weight_bytes) + cost.cache_bytes + cost.activation_bytes
        if held + CONTEXT_BYTES <= device.memory_bytes:
            return True
    number = devices_needed(cost, device)
    return number is not None and number <= model.opening.devices


def devices_needed(cost: Cost, device: Device) -> int | None:
    """Fewest devices that weights and cache, shared evenly by layers, fit on; None: too many.

    Each holds the activations of the layer that runs on it: ceil((weights + cache) / (memory -
    activations - context)).
    """
    beside = CONTEXT_BYTES if device.gpu else cost.process_bytes
    room = device.memory_bytes - beside - cost.activation_bytes
    if room <= 0:
        return None
    number = math.ceil((cost.weight_bytes + cost.cache_bytes) / room)
    return number if number <= MOST_DEVICES else None


def remedies(
    open_as: Callable[..., Model],
    method: Computation | None,
    tokens: int,
    device: Device,
) -> Iterator[str]:
    """What would make it fit, each by itself and mildest first; none where nothing would.

    Args:
        open_as: the model in a dtype, "" for its own, and with some keys of its Opening changed.
    """
    own = open_as("")
    opening, shape = own.opening, own.shape

    def cost_as(dtype: str = "", **changed) -> tuple[Model, Cost]:
        model = open_as(dtype, **changed)
        return model, model.cost(method, tokens, device)

    def helps(dtype: str = "", **changed) -> bool:
        return fits(*cost_as(dtype, **changed), device)

    if shape.dtype == "float32" and helps("bfloat16"):
        yield "dtype: bfloat16"
    kernels = shape.linear_kernels if device.gpu and own.own is None else ()
    for kernel in kernels:
        if opening.attn_implementation != kernel and helps(attn_implementation=kernel):
            yield f"attn_implementation: {kernel}"
    most = min(tokens, opening.prefill_chunk_tokens or tokens)
    multiple = 1 if method is None else method.system.chunk_multiple
    chunks = [size for size in PREFILL_CHUNKS if size < most and size % multiple == 0]
    chunks = chunks if prefills_in_chunks(shape.model.config) else []
    for size in chunks:
        if helps(prefill_chunk_tokens=size):
            yield f"prefill_chunk_tokens: {size}"
            break
    for quantization in ("int8", "nf4"):
        if opening.quantization is None and helps("bfloat16", quantization=quantization):
            yield f"quantization: {quantization}"
    few_bits = own.own is None and opening.cache == "dynamic" and quantizes_cache(shape.text)
    if few_bits and helps(cache="quantized"):
        yield "cache: quantized"
    if device.gpu and not opening.cpu_offload and helps(cpu_offload=True):
        size = own.cost(method, tokens, device).weight_bytes / 2**30
        yield f"device_map: auto and cpu_offload: true ({size:.0f} GiB of main memory)"
    fewer = tokens // 2
    while fewer >= _SHORTEST:
        if fits(own, own.cost(method, fewer, device), device):
            yield f"at most {fewer:,} tokens"
            break
        fewer //= 2
    if device.gpu:
        ways = [{}, *({"attn_implementation": kernel} for kernel in kernels)]
        ways += [{"prefill_chunk_tokens": size} for size in chunks]
        for way in ways:
            number = devices_needed(cost_as(**way)[1], device)
            if number is not None and number > opening.devices:
                beside = "".join(f" and {key}: {value}" for key, value in way.items())
                yield f"{number} devices (pp: {number}{beside})"
                break
