"""What one prompt costs a model under a system: bytes, operations, seconds."""

import math
from dataclasses import dataclass

from needlework.attention.base import Computation
from needlework.config.devices import Device
from needlework.config.opening import Opening
from needlework.planning.flops import attention_flops, pair_flops
from needlework.planning.memory import (
    bounded_cache_bytes,
    replaced_layers,
    state_bytes,
    workspace_bytes,
)
from needlework.planning.shape import Shape
from needlework.planning.trace import Trace, trace

PROCESS_BYTES = 480 * 2**20
"""Resident memory of a process with torch and transformers before it opens a model."""
CALL_SECONDS = 5e-6
"""Time that Python and torch take to start an operation on any device; measured 4-6 us."""
CONTEXT_BYTES = 600 * 2**20
"""GPU memory used besides what torch allocates."""


@dataclass(frozen=True)
class Cost:
    """Cost of one prompt and its answer, batch 1."""

    weight_bytes: int
    cache_bytes: int
    """At the end of the answer, the method's state included, as predictions record it."""
    activation_bytes: int
    """Everything else that a forward holds at its peak."""
    process_bytes: int
    """Of the processes themselves if the device is main memory, else 0."""
    attention_flops: int
    """Of the prefill."""
    flops: int
    """Of the prefill: its matrix products and attention."""
    prefill_seconds: float
    decode_seconds_per_token: float
    """Of the last decoded token."""

    @property
    def peak_bytes(self) -> int:
        """Peak memory as it is measured: what torch allocates on a GPU, or the resident memory of
        the process."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes + self.process_bytes


class Model:
    """A model's shape and how it is opened, with its own attention if that was converted.

    Args:
        shape: of the model; of a converted model, the one before conversion.
        own: the attention that the model was converted to; None: its family's.
        opening: how it is held in memory.
    """

    def __init__(
        self, shape: Shape, own: Computation | None = None, opening: Opening | None = None
    ):
        self.shape, self.own, self.opening = shape, own, opening or Opening()

    def trace(self, tokens: int, gpu: bool) -> Trace:
        """`trace.trace` of this model with its opening.

        Raises:
            ValueError: the model cannot be traced.
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

    def cost(self, method: Computation | None, tokens: int, device: Device) -> Cost:
        """Cost of `tokens` tokens of prompt and answer.

        Args:
            method: applied to the model at evaluation; None: its own attention.

        Raises:
            ValueError: the model cannot be traced.
        """
        method, shape, traced = method or self.own, self.shape, self.trace(tokens, device.gpu)
        prompt, chunk = max(1, tokens - 2), self.opening.prefill_chunk_tokens
        workspace = workspace_bytes(shape, method, tokens, chunk)
        if method is None or method.keeps_kv_cache:
            cache = traced.cache_bytes + state_bytes(shape, method, tokens)
            peak = max(traced.peak_bytes, traced.attention_bytes + workspace)
            activations = peak - traced.cache_bytes
        else:
            cache = bounded_cache_bytes(shape, method, tokens)
            # The cache before a chunk does not grow, so any chunk costs what a short prompt does.
            short = self.trace(min(tokens, chunk + 2), device.gpu) if chunk else traced
            activations = short.peak_bytes - short.cache_bytes + workspace
        weights = shape.weight_bytes(self.opening.quantization)
        attention, token_attention = attention_flops(shape, method, tokens)
        flops, token_flops = traced.prefill_flops, traced.token_flops
        if traced.is_fused or method is not None:
            # Unless fused, the traced operations include the model's own scores, n x n.
            traced_pairs = 0 if traced.is_fused else pair_flops(shape)
            flops += attention - traced_pairs * prompt**2
            token_flops += token_attention - traced_pairs * tokens
        speed, bandwidth = device.flops_per_second(shape.dtype), device.bytes_per_second
        bandwidth *= device.efficiency
        # Some families multiply each token with all experts.
        used_parameters = max(shape.active_parameters, (token_flops - token_attention) // 2)
        weights_read = weights * min(1, used_parameters / shape.parameters)
        cache_read = cache * self._read_share(method, tokens)
        fetched = self._fetched_bytes(weights, cache + activations, device)
        fetch_seconds = fetched / device.host_bytes_per_second
        forwards = math.ceil(prompt / (chunk or prompt))
        prefill = max(flops / speed, forwards * weights_read / bandwidth)
        token = max(token_flops / speed, (weights_read + cache_read) / bandwidth)
        processes = self.opening.processes
        prefill_calls, token_calls = forwards * traced.prefill_calls, traced.token_calls
        return Cost(
            weights,
            cache,
            activations,
            0 if device.gpu else processes * PROCESS_BYTES,
            attention,
            flops,
            max(prefill / processes, prefill_calls * CALL_SECONDS) + forwards * fetch_seconds,
            max(token / processes, token_calls * CALL_SECONDS) + fetch_seconds,
        )

    def _fetched_bytes(self, weights: int, working: int, device: Device) -> int:
        """Bytes of offloaded weights that each forward fetches from the host."""
        if not (self.opening.cpu_offload and device.gpu):
            return 0
        room = max(0, device.memory_bytes - CONTEXT_BYTES - working)
        return max(0, weights - room)

    def _read_share(self, method: Computation | None, tokens: int) -> float:
        """Share of the cache that one decoded token reads."""
        if method is None:
            return 1.0
        with_keys = sum(1 for layer in self.shape.layers if layer.kv_heads)
        replaced = len(replaced_layers(self.shape, method)) / max(1, with_keys)
        return 1 - replaced * (1 - method.decode_density(tokens))
