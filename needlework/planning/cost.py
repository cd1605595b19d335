"""What one prompt costs a model under a system: bytes, operations, seconds."""

import math
from dataclasses import dataclass

from needlework.config.attention import Attention, BlockSparse, Infini
from needlework.config.devices import Device
from needlework.config.opening import Opening
from needlework.planning.flops import attention_flops, decode_density, pair_flops
from needlework.planning.memory import (
    infini_cache_bytes,
    sparse_layers,
    state_bytes,
    workspace_bytes,
)
from needlework.planning.shape import Shape
from needlework.planning.trace import Trace, trace

PROCESS_BYTES = 480 * 2**20
"""Resident in a process with torch and transformers before it opens a model."""
CALL_SECONDS = 5e-6
"""That Python and torch take to start an operation, on any device; measured 4-6 us."""
CONTEXT_BYTES = 600 * 2**20
"""Of a GPU, beside what torch allocates there."""


@dataclass(frozen=True)
class Cost:
    """Of one prompt and its answer, batch 1."""

    weight_bytes: int
    cache_bytes: int
    """When the answer ends, a system's own state included, as predictions record it."""
    activation_bytes: int
    """The rest of what a forward has at once."""
    process_bytes: int
    """Of the process itself, or of all, where the device is main memory."""
    attention_flops: int
    """Of the prefill."""
    flops: int
    """Of the prefill: its products as the family computes them, and attention."""
    prefill_seconds: float
    decode_seconds_per_token: float
    """Of one token that decodes, at the end."""

    @property
    def peak_bytes(self) -> int:
        """Most that is in memory at once, as it is measured: what torch allocates on a GPU, or what
        is resident of the process."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes + self.process_bytes


class Model:
    """A model's shape, with its own attention if that was made part of it.

    Args:
        shape: of the model, or for an Infini model of the one that it was made from.
        own: the Infini-attention that is part of it.
        opening: how it is held in memory.
    """

    def __init__(self, shape: Shape, own: Infini | None = None, opening: Opening | None = None):
        self.shape, self.own, self.opening = shape, own, opening or Opening()

    def trace(self, tokens: int, gpu: bool) -> Trace:
        """As `trace.trace`, opened as this is.

        Raises:
            ValueError: as there.
        """
        opening = self.opening
        return trace(
            self.shape.model,
            tokens,
            opening.cache,
            opening.attn_implementation,
            gpu,
            opening.prefill_chunk_tokens,
        )

    def cost(
        self, system: Attention | None, tokens: int, device: Device, gate_dim: int = 0
    ) -> Cost:
        """What `tokens` tokens of prompt and answer cost.

        Args:
            system: put on the model at evaluation; None: its own attention.
            gate_dim: of SeerAttention's gates, for that system.

        Raises:
            ValueError: the model cannot be traced.
        """
        system, shape, found = system or self.own, self.shape, self.trace(tokens, device.gpu)
        prompt, chunk = max(1, tokens - 2), self.opening.prefill_chunk_tokens
        if isinstance(system, Infini):
            cache = infini_cache_bytes(shape, system, tokens)
            # A chunk has no more before it than a memory, and so is the same as a prompt.
            once = self.trace(min(tokens, chunk + 2), device.gpu) if chunk else found
            rest = once.peak_bytes - once.cache_bytes
            rest += workspace_bytes(shape, system, tokens, chunk)
        else:
            state = state_bytes(shape, system, tokens, gate_dim)
            working = found.attention_bytes + workspace_bytes(shape, system, tokens, chunk)
            cache = found.cache_bytes + state
            rest = max(found.peak_bytes, working) - found.cache_bytes
        weights = shape.weight_bytes(self.opening.quantization)
        attention, decoding = attention_flops(shape, system, tokens)
        flops, token_flops = found.prefill_flops, found.token_flops
        if found.is_fused or system is not None:
            # What the model's own scores take is in them where it computes these one by one.
            pairs = 0 if found.is_fused else pair_flops(shape)
            flops += attention - pairs * prompt**2
            token_flops += decoding - pairs * tokens
        speed, bandwidth = device.flops_per_second(shape.dtype), device.bytes_per_second
        bandwidth *= device.efficiency
        # Some families multiply a token with all of their experts.
        met = max(shape.active_parameters, (token_flops - decoding) // 2)
        read = weights * min(1, met / shape.parameters)
        held = cache * self._read_share(system, tokens)
        fetching = self._fetched_bytes(weights, cache + rest, device) / device.host_bytes_per_second
        forwards = math.ceil(prompt / (chunk or prompt))
        prefill = max(flops / speed, forwards * read / bandwidth)
        token = max(token_flops / speed, (read + held) / bandwidth)
        shares = self.opening.processes
        return Cost(
            weights,
            cache,
            rest,
            0 if device.gpu else shares * PROCESS_BYTES,
            attention,
            flops,
            max(prefill / shares, forwards * found.prefill_calls * CALL_SECONDS)
            + forwards * fetching,
            max(token / shares, found.token_calls * CALL_SECONDS) + fetching,
        )

    def _fetched_bytes(self, weights: int, working: int, device: Device) -> int:
        """Weights that the device has no room for, and that each forward fetches."""
        if not (self.opening.cpu_offload and device.gpu):
            return 0
        room = max(0, device.memory_bytes - CONTEXT_BYTES - working)
        return max(0, weights - room)

    def _read_share(self, system: Attention | None, tokens: int) -> float:
        """Share of the cache that a token reads which decodes."""
        if not isinstance(system, BlockSparse):
            return 1.0
        held = [layer for layer in self.shape.layers if layer.kv_heads]
        sparse = len(sparse_layers(self.shape, system)) / max(1, len(held))
        return 1 - sparse * (1 - decode_density(system, tokens))
