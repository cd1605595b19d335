"""Put an attention system on a loaded model, and take it off again."""

import importlib
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention.blocks import Blocks, choose
from needlework.attention.cache_state import State
from needlework.attention.density import Density, DensityMeter
from needlework.attention.kernels.attend import attend
from needlework.attention.layers import attention_modules
from needlework.attention.masks import LazyMask
from needlework.attention.tensor_parallel import all_heads
from needlework.config.attention import Attention, BlockSparse, InfiniAlignment

NAME = "needlework"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""
# What some families hand to their attention to change its numbers, in ways not known here.
BEYOND = ("position_bias", "indices", "block_indices", "sinks")
_OWN_CODE = (
    "model: {} has attention code of its own; give a model of a family that takes its attention "
    "from transformers' AttentionInterface, as llama does"
)


class Selector(Protocol):
    """What a block-sparse system brings: needlework/attention/<type>.py has a class `Selector`.

    One that reads the model has `attach(model)`, called before any forward, and `detach()` too.
    """

    def __init__(self, system: BlockSparse): ...

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: "Forward") -> Tensor | None:
        """How much each row of blocks wants each block before it: one for all heads [batch, rows,
        blocks], or one for each kv head or each head [batch, choices, rows, blocks]. None: the
        layer stays dense in this forward.

        query [batch, heads, new tokens, d], key [batch, kv heads, all tokens, d], after RoPE.
        """


class Forward:
    """One forward of the model: what the sparse layers share, from the first to the last."""

    def __init__(self, handle: "Handle", state: State):
        self.handle, self.state = handle, state
        self.blocks: Blocks | None = None
        self.walk: Tensor | None = None
        self.terms: dict[str, float | Tensor | None] = {}
        """Scaling, softcap and sinks of the layer at hand, as `attend` takes them."""

    @property
    def told(self) -> int:
        """Handle.prompt_tokens."""
        return self.handle.prompt_tokens if self.handle is not None else 0

    @property
    def tokens(self) -> list[int]:
        """Tokens that each row's prompt has in the end, from its first real one to its last, as far
        as is known: those that are told and have not come count as real."""
        mask = self.blocks.mask
        more = max(0, self.told - mask.total)
        return [end - first + more for first, end in zip(mask.first, mask.end, strict=True)]

    @property
    def is_decode(self) -> bool:
        """One new token upon a cache that holds the prompt, or any where its length is not told."""
        return self.blocks.mask.length == 1 and self.blocks.mask.start >= max(1, self.told)


@dataclass(eq=False)
class Handle:
    """An attention system on a model; leaving the `with` block, or remove(), takes it off."""

    model: PreTrainedModel
    system: BlockSparse
    sparse_layers: frozenset[int]
    """Numbers of the layers whose attention is replaced; never empty."""
    prompt_tokens: int = 0
    """Tokens of the prompt and of what the cache holds before it, padding included. Set it before a
    prefill in chunks: forms whose choice depends on the prompt's whole length (local_share,
    sink_share and dense_last_rows of SketchWalk, dense_last_rows and nz_ratio of Seer) then choose
    as if it came at once, and a last chunk of one token is no decode. 0: not told, as again once a
    forward has reached it. Padding on the right of a chunk to come cannot be known."""

    def __post_init__(self):
        module = importlib.import_module(self.system.module)
        self.selector: Selector = module.Selector(self.system)
        if hasattr(self.selector, "attach"):
            self.selector.attach(self.model)
        self.stock = self.model.config._attn_implementation
        self.meter = DensityMeter()
        base = self.model.base_model
        self._hooks = [
            base.register_forward_pre_hook(self._begin, with_kwargs=True),
            base.register_forward_hook(self._check, with_kwargs=True),
        ]
        self.model.set_attn_implementation(NAME)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the model's own attention. Again: no effect."""
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            if hasattr(self.selector, "detach"):
                self.selector.detach()
            self.model.set_attn_implementation(self.stock)

    def reset(self) -> None:
        """Forget the densities measured so far."""
        self.meter.reset()

    def density(self) -> Density:
        """Kept / causal token pairs over the sparse layers since apply() or reset()."""
        return self.meter.read()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(module.config, "use_cache", False)
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=module.config)
        layers = module.config.get_text_config(decoder=True).num_hidden_layers
        kwargs[NAME] = Forward(self, State.of(cache, layers, self.system.block_size))
        return args, kwargs

    def _check(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if kwargs[NAME].blocks is None:
            raise ValueError(_OWN_CODE.format(module.config.model_type))
        if kwargs[NAME].blocks.mask.total >= self.prompt_tokens:
            self.prompt_tokens = 0


def apply(model: PreTrainedModel, system: Attention) -> Handle | AbstractContextManager[None]:
    """Replace the plain full-attention layers of `model`, from layer `dense_layers` on.

    Layers of other kinds (sliding, chunked, linear) and the first `dense_layers` stay as they
    are. Under the handle `model.generate(**inputs)` needs no further argument. A system that keeps
    the model's own attention (infini_alignment) has a context without a handle.

    Raises:
        ValueError: the system is not one that is put on a model, the model is none that it could
            be put on or has another already, or no layer is left to replace.
    """
    if isinstance(system, InfiniAlignment):
        module = importlib.import_module(system.module)
        return module.realigned(model, system)
    if not isinstance(system, BlockSparse):
        raise ValueError(
            f"{system.type}: is part of a model; name it as `attention` of a model, not of a system"
        )
    full = replaceable_layers(model)
    sparse = frozenset(layer for layer in full if layer >= system.dense_layers)
    if not sparse:
        raise ValueError(
            f"{system.type}: dense_layers {system.dense_layers} leaves none of the model's "
            f"{len(full)} full-attention layers to replace; lower it"
        )
    return Handle(model, system, sparse)


def replaceable_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the model's full-attention layers, never none.

    Raises:
        ValueError: the model is none that a system could be put on, or has another already.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model: is of type {type(model).__name__}; give what AutoModelForCausalLM loads"
        )
    family = model.config.model_type
    if model.config._attn_implementation == NAME:
        raise ValueError("model: has an attention system already; remove() that one first")
    if own := getattr(model.config, "needlework_attention", None):
        raise ValueError(f"model: has {own} as its own attention; give another")
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: {family} has an encoder; give a decoder-only model")
    if not model._can_set_attn_implementation():
        raise ValueError(_OWN_CODE.format(family))
    full = full_attention_layers(model)
    if not full:
        raise ValueError(
            f"model: {family} has no layer of causal attention over the whole context; give a "
            "decoder that has such layers, as llama does"
        )
    return full


def full_attention_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the layers with plain causal attention over the whole context.

    Layers that have it beside a state-space part ("hybrid", as in Falcon-H1) count.
    """
    kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return sorted(
        {
            module.layer_idx
            for module in attention_modules(model)
            if kinds[module.layer_idx] in ("full_attention", "hybrid")
            and getattr(module, "sliding_window", None) is None
            and getattr(module, "is_causal", True)
        }
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """The function behind every attention layer of the model; shapes as transformers has them."""
    forward: Forward | None = kwargs.pop(NAME, None)
    if forward is None or not isinstance(attention_mask, LazyMask):
        raise ValueError(
            f"{type(module).__name__}: the attention system got "
            + (
                "no state; this model family does not pass arguments on to its layers: give another"
                if forward is None
                else "a ready-made mask; pass attention_mask as [batch, tokens] of 0 and 1"
            )
        )
    handle, mask, layer = forward.handle, attention_mask, module.layer_idx
    is_replaced, scores = layer in handle.sparse_layers, None
    if is_replaced:
        if more := [name for name in BEYOND if kwargs.get(name) is not None]:
            raise ValueError(
                f"{type(module).__name__}: this model family's attention also needs {more[0]}, "
                "which block-sparse attention does not have; give a model of another"
            )
        if forward.blocks is None:
            forward.blocks = Blocks(mask, handle.system, query.device)
            forward.state.first, forward.state.length = mask.first, mask.total
        stage = "decode" if forward.is_decode else "prefill"
        forward.terms = {
            "scaling": scaling,
            "softcap": kwargs.get("softcap"),
            "sinks": kwargs.get("s_aux"),
        }
        if not handle.system.skips(stage):
            with torch.no_grad():
                seen = key[:, :, : mask.total]
                heads = all_heads(handle.model, query, seen)
                scores = handle.selector.scores(layer, *heads, forward)
    if scores is None:
        if is_replaced:
            handle.meter.add(layer, stage, mask.causal_pairs, mask.causal_pairs)
        kwargs |= {"scaling": scaling, "dropout": dropout}
        return stock_attention(module, handle.stock, query, key, value, mask, **kwargs)
    out, pairs = attend(
        query,
        seen,
        value[:, :, : mask.total],
        choose(scores, forward.blocks),
        forward.blocks,
        dropout=dropout,
        **forward.terms,
    )
    handle.meter.add(layer, stage, pairs, mask.causal_pairs)
    return out.transpose(1, 2).contiguous(), None


def stock_attention(
    module: nn.Module,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: LazyMask,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The layer's attention by transformers' own implementation `name`."""
    stock = ALL_ATTENTION_FUNCTIONS.get(name)
    if stock is None:
        stock = sys.modules[type(module).__module__].eager_attention_forward
    return stock(module, query, key, value, mask.stock(name), **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, LazyMask)
