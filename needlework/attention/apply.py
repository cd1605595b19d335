"""Put an attention system on a loaded model, and take it off again."""

import importlib
import sys
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention.blocks import Blocks, choose
from needlework.attention.density import Density, DensityMeter
from needlework.attention.kernels import attend
from needlework.attention.masks import LazyMask
from needlework.attention.state import State
from needlework.config.systems import Attention, BlockSparse

NAME = "needlework"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""


class Selector(Protocol):
    """What a block-sparse system brings: needlework/attention/<type>.py has a class `Selector`."""

    def __init__(self, system: BlockSparse): ...

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: "Forward") -> Tensor:
        """How much each row of blocks wants each block before it [batch, rows, blocks].

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
    def total(self) -> int:
        """Tokens the prompt has in the end, padding included, as far as is known."""
        told = self.handle.prompt_tokens if self.handle is not None else 0
        return max(self.blocks.mask.total, told)

    @property
    def is_decode(self) -> bool:
        """One new token upon a cache."""
        return self.blocks.mask.length == 1 and self.blocks.mask.start > 0


@dataclass(eq=False)
class Handle:
    """An attention system on a model; leaving the `with` block, or remove(), takes it off."""

    model: PreTrainedModel
    system: BlockSparse
    sparse_layers: frozenset[int]
    """Numbers of the layers whose attention is replaced; never empty."""
    prompt_tokens: int = 0
    """Set it before a prefill in chunks: forms whose choice depends on the prompt's whole length
    (SketchWalk's shares and last rows) then choose as if it came at once. 0: not told."""

    def __post_init__(self):
        module = importlib.import_module(f"needlework.attention.{self.system.type}")
        self.selector: Selector = module.Selector(self.system)
        self.stock = self.model.config._attn_implementation
        self.meter = DensityMeter()
        self._hook = self.model.base_model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self.model.set_attn_implementation(NAME)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the model's own attention. Again: no effect."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
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


def apply(model: PreTrainedModel, system: Attention) -> Handle:
    """Replace the plain full-attention layers of `model`, from layer `dense_layers` on.

    Layers of other kinds (sliding, chunked, linear) and the first `dense_layers` stay as they
    are. Under the handle `model.generate(**inputs)` needs no further argument.

    Raises:
        ValueError: the system is not one that is put on a model, the model has another already,
            or no layer is left to replace.
    """
    if not isinstance(system, BlockSparse):
        raise ValueError(
            f"{system.type}: is part of a model; name it as `attention` of a model, not of a system"
        )
    if model.config._attn_implementation == NAME:
        raise ValueError("model: has an attention system already; remove() that one first")
    full = full_attention_layers(model)
    sparse = frozenset(layer for layer in full if layer >= system.dense_layers)
    if not sparse:
        raise ValueError(
            f"{system.type}: dense_layers {system.dense_layers} leaves none of the model's "
            f"{len(full)} full-attention layers to replace; lower it"
        )
    return Handle(model, system, sparse)


def full_attention_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the layers with plain causal attention over the whole context.

    Layers that have it beside a state-space part ("hybrid", as in Falcon-H1) count.
    """
    kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return sorted(
        {
            module.layer_idx
            for module in model.base_model.modules()
            if "Attention" in type(module).__name__
            and isinstance(getattr(module, "layer_idx", None), int)
            and kinds[module.layer_idx] in ("full_attention", "hybrid")
            and getattr(module, "sliding_window", None) is None
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
                "no state; this model family does not pass arguments on to its layers"
                if forward is None
                else "a ready-made mask; pass attention_mask as [batch, tokens] of 0 and 1"
            )
        )
    handle, mask = forward.handle, attention_mask
    is_sparse = module.layer_idx in handle.sparse_layers
    if is_sparse:
        if forward.blocks is None:
            forward.blocks = Blocks(mask, handle.system, query.device)
            forward.state.first, forward.state.length = mask.first, mask.total
        stage = "decode" if forward.is_decode else "prefill"
        is_sparse = stage == "prefill" or not handle.system.skip_decode
    if not is_sparse:
        if module.layer_idx in handle.sparse_layers:
            handle.meter.add(module.layer_idx, stage, mask.causal_pairs, mask.causal_pairs)
        stock = ALL_ATTENTION_FUNCTIONS.get(handle.stock)
        if stock is None:
            stock = sys.modules[type(module).__module__].eager_attention_forward
        return stock(
            module,
            query,
            key,
            value,
            mask.stock(handle.stock),
            scaling=scaling,
            dropout=dropout,
            **kwargs,
        )
    key, value = key[:, :, : mask.total], value[:, :, : mask.total]
    forward.terms = {
        "scaling": scaling,
        "softcap": kwargs.get("softcap"),
        "sinks": kwargs.get("s_aux"),
    }
    with torch.no_grad():
        scores = handle.selector.scores(module.layer_idx, query, key, forward)
    out, pairs = attend(
        query,
        key,
        value,
        choose(scores, forward.blocks),
        forward.blocks,
        scaling=scaling,
        dropout=dropout,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    handle.meter.add(module.layer_idx, stage, pairs, mask.causal_pairs)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, LazyMask)
