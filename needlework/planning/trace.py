"""A forward pass on the `meta` device, whose tensors have sizes and no numbers: bytes by counting.

Whatever a family does in its prefill, every tensor that lives at the same time is counted, so
layers of any kind and masks of n x n are in. Fused attention is taken to make its output and
nothing else, as it does.
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
from needlework.planning.shape import FAILURES


@dataclass(frozen=True)
class Trace:
    """Bytes of one prompt, the weights aside."""

    cache_bytes: int
    """What the cache holds at its end, a token decoded."""
    peak_bytes: int
    """Most that was alive at once, cache included."""
    attention_bytes: int
    """Most that was alive while attention was computed, cache included."""
    prefill_flops: int
    """Of all products of the prefill, but those of fused attention."""
    token_flops: int
    """Likewise of the token decoded."""
    prefill_calls: int
    """Operations that torch is called for in a prefill of one forward."""
    token_calls: int
    """Likewise for the token decoded."""
    is_fused: bool
    """Whether attention is."""


def trace(
    model: PreTrainedModel,
    tokens: int,
    cache: str = "dynamic",
    kernel: str | None = None,
    gpu: bool = True,
    chunk: int | None = None,
) -> Trace:
    """Prefill of all but two tokens and a decode step, batch 1: the last token of an answer never
    enters the cache.

    Args:
        model: on the `meta` device.
        tokens: prompt and answer.
        cache: dynamic, or quantized (8-bit floats).
        kernel: what computes attention, as `attn_implementation`; None: as transformers chooses.
        gpu: whether it runs on one.
        chunk: tokens of the prompt in one forward; None: all. Bytes are those of the last of these,
            upon a cache of all before them; operations stay those of the whole.

    Raises:
        ValueError: the family computes with numbers that a model without weights has not.
    """
    prompt = max(1, tokens - 2)
    whole = _traced(model, (prompt,), cache, kernel, gpu)
    if chunk is None or chunk >= prompt:
        return whole
    full, rest = divmod(prompt, chunk)
    forwards = (chunk,) * min(2, full) + (rest,) * (rest > 0)
    # All before the last full chunk but one at once. That one then cuts what windows hold to what
    # they hold after a chunk.
    before = ((full - 2) * chunk,) if full > 2 else ()
    last = _traced(model, before + forwards, cache, kernel, gpu, uncounted=2 * len(before))
    return replace(whole, peak_bytes=last.peak_bytes, attention_bytes=last.attention_bytes)


@lru_cache(maxsize=256)  # a model is asked the same for many ways of opening it
def _traced(
    model: PreTrainedModel,
    forwards: tuple[int, ...],
    cache: str,
    kernel: str | None,
    gpu: bool,
    uncounted: int = 0,
) -> Trace:
    """Of a prompt in forwards of so many tokens, and a token: bytes but for those of the first
    `uncounted` ones."""
    live = _Live(model)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    given = {}
    try:
        if cache == "quantized":
            given = {"past_key_values": QuantizedCache("fp8", model.config)}
        with torch.no_grad(), _by(model, kernel), _Still(model), _Fused(live, gpu), live:
            for number, tokens in enumerate(forwards):
                if number == uncounted:
                    live.peak, live.in_attention = live.now, 0
                ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
                out = model(input_ids=ids, use_cache=True, **given, **last)
                name = "cache_params" if out.get("past_key_values") is None else "past_key_values"
                held = out[name]
                given = {name: held}
                del out
            prefill, calls = live.flops, live.calls
            model(input_ids=ids[:, :1], use_cache=True, **given, **last)
    except FAILURES as error:
        family, what = model.config.model_type, str(error).partition("\n")[0]
        raise ValueError(f"{family}: cannot be traced without weights ({what})") from None
    return Trace(
        cache_bytes(held),
        live.peak,
        live.in_attention,
        prefill,
        live.flops - prefill,
        calls,
        live.calls - calls,
        live.in_attention > 0,
    )


def trace_training(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Bytes that a forward pass of `rows` x `tokens` keeps for its backward pass, and its loss's.

    Raises:
        ValueError: as `trace`.
    """
    live = _Live(model)
    try:
        with _Still(model), _Fused(live, True), live:
            ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
            # Without a cache, masks look for texts packed into one row, at numbers. Keys and values
            # are kept for the backward pass anyway.
            logits = model(input_ids=ids, use_cache=True).logits.float()
            functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    except FAILURES as error:
        family, what = model.config.model_type, str(error).partition("\n")[0]
        raise ValueError(f"{family}: cannot be traced without weights ({what})") from None
    return live.peak


@contextmanager
def _by(model: PreTrainedModel, kernel: str | None) -> Iterator[None]:
    """The model with another kernel, such as are not here: of these, what their masks take."""
    if kernel is None or not model._can_set_attn_implementation():
        yield
        return
    stock = model.config._attn_implementation
    model.set_attn_implementation(_STAND_INS.get(kernel, kernel))
    try:
        yield
    finally:
        model.set_attn_implementation(stock)


class _Live(TorchDispatchMode):
    """Counts bytes of the storages that operations make, until each is freed, not the model's;
    calls; and operations of products."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.now = self.peak = self.in_attention = self.flops = self.calls = 0
        held = (*model.parameters(), *model.buffers())
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(self, func: Callable, types: Any, args=(), kwargs=None):
        self.calls += 1
        if func is torch.ops.aten._grouped_mm.default:
            # Without a device it knows fewer dtypes: [rows, k] and [experts, k, n] to [rows, n].
            out = args[0].new_empty(len(args[0]), args[1].shape[-1])
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        else:
            out = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func._overloadpacket)) is not None:
                self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if isinstance(out, Tensor):  # as most are, and walking a tree takes longer than adding
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
    """Stands for fused attention: its output, and the float mask that it makes of a bool one."""

    def __init__(self, live: _Live, gpu: bool):
        super().__init__()
        self.live, self.gpu = live, gpu

    def __torch_function__(self, func: Callable, types: Any, args=(), kwargs=None):
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, query, key, value, attn_mask=None, *args, **kwargs) -> Tensor:
        bias = None
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
        scores = []
        if not self.gpu and key.shape[-1] != value.shape[-1]:
            # On a CPU it is fused for equal dimensions alone: scores and their softmax else.
            shape = (*query.shape[:-1], key.shape[-2])
            scores = [torch.empty(shape, dtype=query.dtype, device="meta") for _ in range(2)]
        out = _Attention.apply(query, key, value)
        self.live.in_attention = max(self.live.in_attention, self.live.now)
        del bias, scores
        return out


class _Attention(torch.autograd.Function):
    """An output of the right shape, [batch, heads, queries, value dim], and what backward keeps."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, queries, _ = query.shape
        out = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out)
        return out


def _attend(module, query, key, value, attention_mask, **_) -> tuple[Tensor, None]:
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def _block_mask(*_, q_length: int, kv_length: int, **__) -> Tensor:
    """Numbers of a flex attention's blocks: whole and cut ones, by queries and by keys, int32."""
    blocks = -(-q_length // 128) * -(-kv_length // 128)
    return torch.empty(4 * blocks, dtype=torch.int32, device="meta")


# transformers looks for what flash in a name asks for.
_FLASH, _FLEX = "needlework_maskless", "needlework_block_masks"
_STAND_INS = {"flash_attention_2": _FLASH, "flash_attention_3": _FLASH, "flex_attention": _FLEX}
for _name, _mask in ((_FLASH, lambda *_, **__: None), (_FLEX, _block_mask)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, _mask)


class _Still:
    """For a while a model does not look at numbers: not at those of positions, in rotary encodings
    that depend on the length, and not for padding without a mask, to warn of it."""

    def __init__(self, model: PreTrainedModel):
        self.config = model.config
        self.modules = [m for m in model.modules() if hasattr(m, "rope_type")]

    def __enter__(self) -> None:
        self.types = [module.rope_type for module in self.modules]
        for module, kinds in zip(self.modules, self.types, strict=True):
            still = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
            module.rope_type = still
        self.pad, self.config.pad_token_id = getattr(self.config, "pad_token_id", None), None

    def __exit__(self, *_) -> None:
        for module, kind in zip(self.modules, self.types, strict=True):
            module.rope_type = kind
        self.config.pad_token_id = self.pad
