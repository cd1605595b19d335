"""Memory and operations of a forward pass, counted on the `meta` device (sizes without values).

Counts every tensor that is alive at the same time, so it covers layers of any kind and n x n masks.
Fused attention counts as its output only, as in reality.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    QuantizedCache,
)

from needlework.evaluation.meter import cache_bytes
from needlework.planning.shape import MODEL_ERRORS


@dataclass(frozen=True)
class Trace:
    """Bytes and operations of one prompt, without the weights."""

    cache_bytes: int
    """Of the cache after the prompt and one decoded token."""
    peak_bytes: int
    """Peak of live tensors, cache included."""
    attention_bytes: int
    """Peak while attention is computed, cache included."""
    prefill_flops: int
    """Of the matrix products of the prefill, except those of fused attention."""
    token_flops: int
    """The same for one decoded token."""
    prefill_calls: int
    """Torch operations started in a prefill in one forward."""
    token_calls: int
    """The same for one decoded token."""
    is_fused: bool
    """Whether attention is fused."""


def trace(
    model: PreTrainedModel,
    tokens: int,
    cache: str = "dynamic",
    kernel: str | None = None,
    gpu: bool = True,
    chunk: int | None = None,
) -> Trace:
    """Trace a prefill of all but two tokens and one decode step, batch 1.

    The last token of an answer never enters the cache.

    Args:
        model: on the `meta` device.
        tokens: of prompt and answer.
        cache: dynamic, or quantized (8-bit floats).
        kernel: attention implementation, as in `attn_implementation`; None: transformers' choice.
        gpu: whether the model runs on a GPU.
        chunk: tokens of the prompt per forward; None: all. Bytes are those of the last chunk, after
            a cache of all earlier ones; operations are those of the whole prompt.

    Raises:
        ValueError: the model reads tensor values, which do not exist without weights.
    """
    prompt = max(1, tokens - 2)
    whole = _traced(model, (prompt,), cache, kernel, gpu)
    if chunk is None or chunk >= prompt:
        return whole
    full, rest = divmod(prompt, chunk)
    forwards = (chunk,) * min(2, full) + (rest,) * (rest > 0)
    # Everything before the last two full chunks in one forward; the chunk that follows trims
    # sliding windows to what they hold after a chunk.
    before = ((full - 2) * chunk,) if full > 2 else ()
    last = _traced(model, before + forwards, cache, kernel, gpu, uncounted=2 * len(before))
    return replace(whole, peak_bytes=last.peak_bytes, attention_bytes=last.attention_bytes)


@lru_cache(maxsize=256)  # many openings of a model need the same trace
def _traced(
    model: PreTrainedModel,
    forwards: tuple[int, ...],
    cache: str,
    kernel: str | None,
    gpu: bool,
    uncounted: int = 0,
) -> Trace:
    """Trace a prompt in forwards of these numbers of tokens, and one decoded token. Peak bytes
    exclude the first `uncounted` forwards."""
    live = _LiveTensors(model)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    inputs: dict[str, Any] = {}
    try:
        if cache == "quantized":
            inputs = {"past_key_values": QuantizedCache("fp8", model.config)}
        with torch.no_grad(), _kernel(model, kernel), _ValueFree(model), _Fused(live, gpu), live:
            for number, tokens in enumerate(forwards):
                if number == uncounted:
                    live.peak, live.in_attention = live.now, 0
                ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
                out = model(input_ids=ids, use_cache=True, **inputs, **last)
                name = "cache_params" if out.get("past_key_values") is None else "past_key_values"
                filled = out[name]
                inputs = {name: filled}
                del out
            prefill, calls = live.flops, live.calls
            model(input_ids=ids[:, :1], use_cache=True, **inputs, **last)
    except MODEL_ERRORS as error:
        family, what = model.config.model_type, str(error).partition("\n")[0]
        raise ValueError(f"{family}: cannot be traced without weights ({what})") from None
    return Trace(
        cache_bytes(filled),
        live.peak,
        live.in_attention,
        prefill,
        live.flops - prefill,
        calls,
        live.calls - calls,
        live.in_attention > 0,
    )


def trace_training(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Peak bytes of a training forward of `rows` x `tokens` with its loss, including what it keeps
    for the backward pass.

    Raises:
        ValueError: as `trace`.
    """
    live = _LiveTensors(model)
    try:
        with _ValueFree(model), _Fused(live, True), live:
            ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
            # Without a cache, mask code reads position values to find packed texts. The backward
            # pass keeps keys and values anyway.
            logits = model(input_ids=ids, use_cache=True).logits.float()
            functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    except MODEL_ERRORS as error:
        family, what = model.config.model_type, str(error).partition("\n")[0]
        raise ValueError(f"{family}: cannot be traced without weights ({what})") from None
    return live.peak


@contextmanager
def _kernel(model: PreTrainedModel, kernel: str | None) -> Iterator[None]:
    """Use another attention kernel; for kernels that may not be installed, only their masks."""
    if kernel is None or not model._can_set_attn_implementation():
        yield
        return
    stock = model.config._attn_implementation
    model.set_attn_implementation(_STAND_INS.get(kernel, kernel))
    try:
        yield
    finally:
        model.set_attn_implementation(stock)


class _LiveTensors(TorchDispatchMode):
    """Counts bytes of live tensor storages except the model's, calls, and flops of products."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.now = self.peak = self.in_attention = self.flops = self.calls = 0
        own = (*model.parameters(), *model.buffers())
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in own)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if func is torch.ops.aten._grouped_mm.default:
            # On meta it supports fewer dtypes: [rows, k] and [experts, k, n] to [rows, n].
            out = args[0].new_empty(len(args[0]), args[1].shape[-1])
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        else:
            out = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func._overloadpacket)) is not None:
                self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if isinstance(out, Tensor):  # the usual case; walking a tree is slow
            return self._add(out)
        return tree_map_only(Tensor, self._add, out)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            weakref.finalize(storage, self._free, size)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _free(self, size: int) -> None:
        self.now -= size


class _Fused(TorchFunctionMode):
    """Replaces fused attention: its output, and the float mask that it makes from a bool one."""

    def __init__(self, live: _LiveTensors, gpu: bool) -> None:
        super().__init__()
        self.live, self.gpu = live, gpu

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        bias = None
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
        scores = []
        if not self.gpu and key.shape[-1] != value.shape[-1]:
            # On a CPU, unequal dimensions are not fused: add scores and their softmax.
            shape = (*query.shape[:-1], key.shape[-2])
            scores = [torch.empty(shape, dtype=query.dtype, device="meta") for _ in range(2)]
        out = _Attention.apply(query, key, value)
        self.live.in_attention = max(self.live.in_attention, self.live.now)
        del bias, scores
        return out


class _Attention(torch.autograd.Function):
    """An output [batch, heads, queries, value dim] that keeps what backward needs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, queries, _ = query.shape
        out = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out)
        return out


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def _block_mask(*_: Any, q_length: int, kv_length: int, **__: Any) -> Tensor:
    """Block numbers of a flex attention mask: full and partial, by queries and by keys, int32."""
    blocks = -(-q_length // 128) * -(-kv_length // 128)
    return torch.empty(4 * blocks, dtype=torch.int32, device="meta")


# No `flash` in the names: transformers would look for the flash-attn package.
_FLASH, _FLEX = "needlework_maskless", "needlework_block_masks"
_STAND_INS = {"flash_attention_2": _FLASH, "flash_attention_3": _FLASH, "flex_attention": _FLEX}
for _name, _mask in ((_FLASH, lambda *_, **__: None), (_FLEX, _block_mask)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, _mask)


class _ValueFree:
    """Keeps a model from reading tensor values: positions, in rotary encodings that depend on the
    length, and ids, in the check for padding without a mask."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.modules = [m for m in model.modules() if hasattr(m, "rope_type")]

    def __enter__(self) -> None:
        self.types = [module.rope_type for module in self.modules]
        for module, kinds in zip(self.modules, self.types, strict=True):
            module.rope_type = (
                dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
            )
        self.pad, self.config.pad_token_id = getattr(self.config, "pad_token_id", None), None

    def __exit__(self, *_: object) -> None:
        for module, kind in zip(self.modules, self.types, strict=True):
            module.rope_type = kind
        self.config.pad_token_id = self.pad
