"""Apply an attention system to a loaded model, and remove it again."""

import inspect
import sys
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DynamicCache,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention.base import AttentionMethod, Forward, Selector, method_of
from needlework.attention.blocks import Blocks, choose
from needlework.attention.cache_state import MethodState
from needlework.attention.causal_choice import past_scores
from needlework.attention.density import Density, DensityMeter
from needlework.attention.generation_checks import (
    GenerationChecks,
    refuse_cut_blocks,
    refuse_packed_texts,
)
from needlework.attention.kernels.attend import attend
from needlework.attention.layers import attention_modules, full_attention_layers
from needlework.attention.masks import LazyMask
from needlework.attention.tensor_parallel import gather_heads, mean_pairs, own_choices
from needlework.config.attention.base import Attention

NAME = "needlework"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""
# Arguments that change the attention of some families in ways that block-sparse attention lacks.
UNSUPPORTED = ("position_bias", "indices", "block_indices", "sinks")
_OWN_CODE = (
    "model: {} computes attention in its own code; choose a model family that uses "
    "transformers' AttentionInterface, such as llama"
)


class Handle:
    """An attention system applied to a model.

    Leaving the `with` block, or remove(), restores the model. Reports a density of 1 unless a
    subclass measures it.
    """

    sparse_layers: frozenset[int] = frozenset()
    """Numbers of the layers whose attention is replaced."""
    prompt_tokens: int = 0
    """Tokens of the whole prompt and of what the cache holds before it, padding included; 0:
    unknown. Set it before a prefill in chunks, so that choices that depend on the prompt's length
    (`prompt_length_key` of the system) are those of a prefill in one pass, and a last chunk of one
    token counts as prefill, and chunks that cut blocks are refused. Reset to 0 by the forward that
    completes the prompt. Padding on the right of later chunks is not known in advance. If it is not
    set, each forward is a prompt of its own, and a block that two of them share chooses twice."""

    def __init__(self, model: PreTrainedModel, method: AttentionMethod):
        self.model, self.method = model, method
        self.system: Attention = method.system
        self._is_applied = True
        method.attach(model)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the model's own attention. A second call has no effect."""
        if self._is_applied:
            self._is_applied = False
            self._restore()

    def reset(self) -> None:
        """Discard the densities measured so far."""

    def density(self) -> Density:
        """Kept / causal token pairs since apply() or reset(), of all full-attention layers of the
        model and of the sparse ones alone."""
        return Density(1.0, 1.0)

    def _restore(self) -> None:
        self.method.detach()


class SparseHandle(Handle):
    """A block-sparse system applied to a model: replaces the attention of `sparse_layers`; the
    other full-attention layers are its `dense_layers`."""

    def __init__(
        self,
        model: PreTrainedModel,
        selector: Selector,
        sparse_layers: frozenset[int],
        dense_layers: frozenset[int],
    ):
        super().__init__(model, selector)
        self.selector, self.sparse_layers = selector, sparse_layers
        self.dense_layers = dense_layers
        self.meter = DensityMeter()
        self.stock = model.config._attn_implementation
        self.call: _Call | None = None
        """Of the forward in progress."""
        # Some families call the decoder of their base model directly (OPT).
        self._called = dict.fromkeys([model.base_model, model.base_model.get_decoder()])
        self._hooks = [
            register(hook, with_kwargs=True)
            for module in self._called
            for register, hook in (
                (module.register_forward_pre_hook, self._begin),
                (module.register_forward_hook, self._finish),
            )
        ]
        for _, module in attention_modules(model):
            _HANDLES[module] = ref(self)
        self._generation = GenerationChecks(model, self)
        model.set_attn_implementation(NAME)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseHandle":
        # The hooks of a copied model lead here; its first forward makes it a stock model.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("model: has an attention system applied; call its remove() before pickling")

    def reset(self) -> None:
        self.meter.reset()

    def density(self) -> Density:
        return self.meter.read()

    @torch.no_grad()
    def chosen_blocks(
        self, layer: int, query: Tensor, key: Tensor, forward: Forward
    ) -> Tensor | None:
        """The blocks that the method chooses for a layer, see `choose`; None: all of them."""
        heads = gather_heads(self.model, query, key)
        if self.selector.system.is_dense(forward.stage):
            self.selector.observe(layer, *heads, forward)
            return None
        scores = self.selector.scores(layer, *heads, forward)
        if scores is None:
            return None
        if self.selector.chooses_by_past(forward.stage):
            scores = past_scores(scores, layer, forward)
        return choose(own_choices(self.model, scores, query.shape[1]), forward.blocks)

    def _restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for _, module in attention_modules(self.model):
            _HANDLES.pop(module, None)
        self._generation.remove()
        super()._restore()
        self.model.set_attn_implementation(self.stock)

    def restore_copy(self, base_model: PreTrainedModel) -> None:
        """Give a copy of the model, made while this system was applied, its own attention."""
        for hooks in (base_model._forward_pre_hooks, base_model._forward_hooks):
            for key, hook in [*hooks.items()]:
                if getattr(hook, "__self__", None) is self:
                    del hooks[key]
        base_model.set_attn_implementation(self.stock)

    def state_in(self, cache: Cache | None) -> MethodState:
        """The method's tensors in `cache`, added to a new one; a state of its own without a cache.

        Raises:
            ValueError: the cache has tokens that the method has not seen.
        """
        config: Any = self.model.config
        layers = config.get_text_config(decoder=True).num_hidden_layers
        return MethodState.get_or_create(cache, layers, self.selector.system.block_size)

    def _begin(
        self, module: PreTrainedModel, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        if module not in self._called:
            self.restore_copy(module)
            return None
        if self.call is not None and self.call.module is not module:
            return None  # within a forward of the base model
        config: Any = module.config
        if config._attn_implementation != NAME:
            raise ValueError(
                f"model: set_attn_implementation({config._attn_implementation!r}) replaced its "
                "attention system; call the handle's remove() before"
            )
        args, kwargs = _by_name(module, args, kwargs)
        refuse_packed_texts(kwargs)
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(config, "use_cache", False)
        if cache is None and use_cache:
            cache = kwargs["past_key_values"] = DynamicCache(config=config)
        state = self.state_in(cache)
        refuse_cut_blocks(kwargs, state.length, self.prompt_tokens, self.system.chunk_multiple)
        forward = Forward(state, self.prompt_tokens, keeps_choices=torch.is_grad_enabled())
        kwargs[NAME] = self.call = _Call(self, forward, module)
        return args, kwargs

    def _finish(self, module: PreTrainedModel, args: tuple, kwargs: dict, output: object) -> None:
        if self.call is None:
            return  # the decoder within the base model has finished
        forward = self.call.forward
        self.call = None
        forward.end()
        if not forward.has_blocks:
            config: Any = module.config
            raise ValueError(_OWN_CODE.format(config.model_type))
        for layer in self.dense_layers:  # computed by the model, with the pairs of sparse layers
            self.meter.add_dense(layer, forward.stage, forward.blocks.mask.causal_pairs)
        if forward.blocks.mask.total >= self.prompt_tokens:
            self.prompt_tokens = 0


@dataclass(frozen=True)
class _Call:
    """What a forward passes to each of its attention layers."""

    handle: SparseHandle
    forward: Forward
    module: nn.Module
    """The base model, or its decoder where that is called directly."""


_HANDLES: WeakKeyDictionary[nn.Module, ReferenceType[SparseHandle]] = WeakKeyDictionary()
"""The handle of each attention module, for families that do not pass arguments on to it."""


def apply(model: PreTrainedModel, system: Attention) -> Handle:
    """Apply `system` to `model`; `model.generate(**inputs)` then needs no further argument.

    A block-sparse system replaces the full-attention layers from layer `dense_layers` on; layers of
    other kinds (sliding, chunked, linear) and the first `dense_layers` keep their attention.

    Raises:
        ValueError: the system is part of a model instead of applied to one, the model does not
            support it or has another system already, or no layer is left to replace.
    """
    if system.converts_model:
        raise ValueError(
            f"{system.type}: is part of a model; write it as `attention` of a model, not of a "
            "system"
        )
    method = method_of(system)
    if not isinstance(method, Selector):
        return Handle(model, method)
    full, first = replaceable_layers(model), method.system.dense_layers
    sparse = frozenset(layer for layer in full if layer >= first)
    if not sparse:
        raise ValueError(
            f"{system.type}: dense_layers {first} leaves none of the model's {len(full)} "
            "full-attention layers to replace; lower it"
        )
    return SparseHandle(model, method, sparse, frozenset(full) - sparse)


def replaceable_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the model's full-attention layers, at least one.

    Raises:
        ValueError: no block-sparse system can be applied to the model, or one is applied already.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model: is a {type(model).__name__}; pass a model loaded by AutoModelForCausalLM"
        )
    family = model.config.model_type
    _restore_if_copy(model)
    if model.config._attn_implementation == NAME:
        raise ValueError("model: has an attention system already; call its remove() first")
    if own := getattr(model.config, "needlework_attention", None):
        raise ValueError(f"model: has {own} as its own attention; choose a model without")
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: {family} has an encoder; choose a decoder-only model")
    if not model._can_set_attn_implementation():
        raise ValueError(_OWN_CODE.format(family))
    full = full_attention_layers(model)
    if not full:
        raise ValueError(
            f"model: {family} has no layer with causal attention over the whole context; choose a "
            "decoder with such layers, such as llama"
        )
    return full


def _restore_if_copy(model: PreTrainedModel) -> None:
    """Give `model` its own attention if it is a copy of a model with an attention system."""
    base_model = model.base_model
    for hook in [*base_model._forward_pre_hooks.values()]:
        handle = getattr(hook, "__self__", None)
        if isinstance(handle, SparseHandle) and handle.model.base_model is not base_model:
            handle.restore_copy(base_model)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of every layer of the model; shapes as in transformers."""
    call = kwargs.pop(NAME, None) or _call_in_progress(module)
    if not isinstance(attention_mask, LazyMask):
        raise ValueError(
            f"{type(module).__name__}: got a ready-made mask; pass attention_mask as "
            "[batch, tokens] of 0 and 1"
        )
    handle, forward, mask = call.handle, call.forward, attention_mask
    layer: Any = module.layer_idx
    if layer not in handle.sparse_layers:
        return stock_attention(
            module,
            handle.stock,
            query,
            key,
            value,
            mask,
            scaling=scaling,
            dropout=dropout,
            **kwargs,
        )
    if extra := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__}: this family's attention uses {extra[0]}, which "
            "block-sparse attention does not support; choose a model of another family"
        )
    if not forward.has_blocks:
        forward.blocks = Blocks(mask, handle.selector.system, query.device)
        forward.state.first, forward.state.length = mask.first, mask.total
    forward.terms = {
        "scaling": scaling,
        "softcap": kwargs.get("softcap"),
        "sinks": kwargs.get("s_aux"),
    }
    cached_key = key[:, :, : mask.total]
    is_repeated = forward.repeats(layer, query)
    if is_repeated:
        chosen = forward.choice(layer)
    else:
        chosen = handle.chosen_blocks(layer, query, cached_key, forward)
        forward.record(layer, query, chosen)
    if chosen is None:
        pairs: float | Tensor = mask.causal_pairs
        attended = stock_attention(
            module,
            handle.stock,
            query,
            key,
            value,
            mask,
            scaling=scaling,
            dropout=dropout,
            **kwargs,
        )
    else:
        out, pairs = attend(
            query,
            cached_key,
            value[:, :, : mask.total],
            chosen,
            forward.blocks,
            dropout=dropout,
            **forward.terms,
        )
        pairs = mean_pairs(handle.model, pairs, chosen, query.shape[1])
        attended = out.transpose(1, 2).contiguous(), None
    if not is_repeated:
        handle.meter.add(layer, forward.stage, pairs, mask.causal_pairs)
    return attended


def _by_name(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments of a forward with as many as possible by name."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    return args[len(names) :], dict(zip(names, args, strict=False)) | kwargs


def _call_in_progress(module: nn.Module) -> _Call:
    """The forward that computes `module`, of a family that does not pass arguments on to it."""
    reference = _HANDLES.get(module)
    handle = None if reference is None else reference()
    if handle is None:
        raise ValueError(
            f"{type(module).__name__}: is a copy of a module with an attention system; copy the "
            "model after the handle's remove()"
        )
    if handle.call is None:
        raise ValueError(
            f"{type(module).__name__}: computed outside a forward under its attention system; call "
            "apply() before the forward, or, as this family may not pass arguments on to its "
            "layers, turn checkpointing off"
        )
    return handle.call


def stock_attention(
    module: nn.Module,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: LazyMask,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The layer's attention as computed by transformers' implementation `name`."""
    stock = ALL_ATTENTION_FUNCTIONS.get(name)
    if stock is None:
        stock = sys.modules[type(module).__module__].eager_attention_forward
    return stock(module, query, key, value, mask.stock(name), **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, LazyMask)
