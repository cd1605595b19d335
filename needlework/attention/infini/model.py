"""Infini models: mixins for the classes of a family, with gates and the context of each forward.

Full-attention layers are replaced. Sliding-window layers keep their own attention, whose mask has
new tokens x (window + new tokens) entries, so such models should read long texts in chunks.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.generation import GenerationMixin

from needlework.attention.infini.attention import NAME, ForwardContext, Gate
from needlework.attention.infini.cache import InfiniCache
from needlework.attention.infini.rope import angles, remove_rope
from needlework.attention.infini.segments import Segments, end_offset
from needlework.attention.layers import attention_modules
from needlework.config.attention.infini import Infini

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    # The class of the family comes after the mixin and is a PreTrainedModel.
    _Base = object


def full_attention(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each full-attention layer, by layer index."""
    kinds, _ = get_layer_types_and_kwargs(model.config)
    return {
        layer: module
        for layer, module in attention_modules(model)
        if kinds[layer] == "full_attention"
    }


def _before_forward(module: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hook of the base model: create the cache if needed, and the context of the forward."""
    system = Infini(**module.config.infini)
    inputs = kwargs.get("input_ids", args[0] if args else None)
    inputs = kwargs["inputs_embeds"] if inputs is None else inputs
    rows = len(inputs)

    cache = kwargs.get("past_key_values")
    use_cache = kwargs.get("use_cache")
    if use_cache is None:
        use_cache = module.config.use_cache and not module.training
    if cache is None and use_cache:
        cache = InfiniCache(module.config)
    if cache is not None and not isinstance(cache, InfiniCache):
        raise ValueError(f"past_key_values: an Infini model needs InfiniCache, got {type(cache)}")

    real = _real_columns(kwargs.get("attention_mask"), inputs, cache)
    offset = kwargs.pop("segment_offset", None)
    if offset is None and cache is not None:
        offset = cache.offset
        if offset is None and system.segment_alignment == "end":
            offset = end_offset(real.sum(1), system.segment_length)
    if offset is None:
        offset = real.new_zeros(rows, dtype=torch.long)
    offset = offset.expand(rows)
    seen = offset.new_zeros(rows) if cache is None or cache.seen is None else cache.seen
    segments = Segments.place(real, seen, offset, system.segment_length)
    if cache is not None:
        cache.offset, cache.seen = offset, seen + real.sum(1)

    positions = torch.arange(system.segment_length, device=inputs.device)
    rotation = angles(module.segment_rotary_emb, positions, module.dtype)
    unrotated = frozenset(module.config.infini_unrotated_layers or ())
    kwargs["past_key_values"], kwargs["use_cache"] = cache, use_cache
    kwargs[NAME] = ForwardContext(segments, cache, rotation, unrotated)
    return args, kwargs


def _real_columns(mask: Tensor | None, inputs: Tensor, cache: InfiniCache | None) -> Tensor:
    """bool [B, n]: which new columns are not padding."""
    rows, columns = inputs.shape[:2]
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool, device=inputs.device)
    past = 0 if cache is None else cache.get_seq_length()
    if mask.dim() != 2 or mask.shape[1] not in (columns, past + columns):
        raise ValueError(
            f"attention_mask: its shape is {tuple(mask.shape)}; Infini-attention needs a padding "
            f"mask of shape {(rows, past + columns)}, one value per token"
        )
    return mask[:, -columns:].to(inputs.device, torch.bool)


def install(model: PreTrainedModel) -> None:
    """Add gates to every full-attention layer, and hooks that remove RoPE and set the context."""
    system, base = Infini(**model.config.infini), model.base_model
    for number, attention in full_attention(model).items():
        attention.gate = Gate(model.config.num_attention_heads, system, number)
        remove_rope(attention)
    # A copy, because some forms of RoPE adapt to the positions last seen.
    base.segment_rotary_emb = copy.deepcopy(base.rotary_emb)
    base.register_forward_pre_hook(_before_forward, with_kwargs=True)


class InfiniModel(_Base):
    """Mixin of every Infini class, before the class of its family."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        config._attn_implementation = NAME
        super().__init__(config, *args, **kwargs)
        install(self)

    @property
    def gates(self) -> list[Gate]:
        """The gate of each full-attention layer."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "attn_implementation: cannot be changed, because Infini-attention is part of this model"
        )

    def training_offset(
        self, prompt_tokens: Tensor, generator: torch.Generator, alignment: str | None = None
    ) -> Tensor | None:
        """A `segment_offset` [B] for training on prompts of int64 [B] tokens.

        `alignment` is start, end or random; None: the model's own. With end, prompts end anywhere
        in the middle half of a segment in training, so that no slot is special; with random they
        end anywhere. Returns None with start: segments begin at the first token.
        """
        system = Infini(**self.config.infini)
        length, shape = system.segment_length, prompt_tokens.shape
        match alignment or system.segment_alignment:
            case "start":
                return None
            case "random":
                return torch.randint(length, shape, generator=generator)
        shift = torch.randint(-(length // 4), length // 4 + 1, shape, generator=generator)
        return end_offset(prompt_tokens - shift, length)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        # The family's class does not initialize gates. transformers skips loaded parameters.
        for gate in self.gates:
            gate.reset()


class InfiniForCausalLM(InfiniModel):
    """Mixin of Infini classes with a language-model head."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Some families drop the cache when their RoPE changes form; within segments it never does.
        return GenerationMixin.prepare_inputs_for_generation(self, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation: {generation_config.cache_implementation} cannot be used "
                "with Infini-attention, which has its own cache; leave it unset"
            )
        system = Infini(**self.config.infini)
        offset = None
        if system.segment_alignment == "end":
            # generate() drops a mask that is all ones.
            mask = model_kwargs.get("attention_mask")
            last_position = model_kwargs["position_ids"][:, -1]
            tokens = last_position + 1 if mask is None else mask.sum(1)
            offset = end_offset(tokens, system.segment_length)
        if generation_config.use_cache is False:
            model_kwargs["segment_offset"] = offset
        elif model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = InfiniCache(self.config, offset)
