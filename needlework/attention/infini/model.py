"""What makes a model one of Infini-attention: gates on its layers, and what each pass hands them.

Full-attention layers are replaced; layers that slide a window stay as their family has them, mask
of new tokens times window and new tokens included, so long texts go to such models in chunks.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.generation import GenerationMixin

from needlework.attention.infini.attention import NAME, Gate, Pass
from needlework.attention.infini.cache import InfiniCache
from needlework.attention.infini.rope import angles, take_off
from needlework.attention.infini.segments import Segments, end_offset
from needlework.attention.layers import attention_modules
from needlework.config.attention import Infini


def full_attention(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each full-attention layer, by the layer's number."""
    kinds, _ = get_layer_types_and_kwargs(model.config)
    return {
        layer: module
        for layer, module in attention_modules(model)
        if kinds[layer] == "full_attention"
    }


def _begin_pass(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the base model: lay out the columns, and make the cache where one is wanted."""
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
    kwargs[NAME] = Pass(segments, cache, rotation, unrotated)
    return args, kwargs


def _real_columns(mask: Tensor | None, inputs: Tensor, cache: InfiniCache | None) -> Tensor:
    """bool [B, n]: the new columns that are not padding."""
    rows, columns = inputs.shape[:2]
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool, device=inputs.device)
    past = 0 if cache is None else cache.get_seq_length()
    if mask.dim() != 2 or mask.shape[1] not in (columns, past + columns):
        raise ValueError(
            f"attention_mask: shape {tuple(mask.shape)} is not {(rows, past + columns)}, one value "
            "a token; Infini-attention takes padding masks only"
        )
    return mask[:, -columns:].to(inputs.device, torch.bool)


def install(model: PreTrainedModel) -> None:
    """Gates on every full-attention layer, and the hooks that hand the pass down."""
    system, base = Infini(**model.config.infini), model.base_model
    for number, attention in full_attention(model).items():
        attention.gate = Gate(model.config.num_attention_heads, system, number)
        take_off(attention)
    # Of its own: some forms of RoPE change with the positions last seen, which segments hide.
    base.segment_rotary_emb = copy.deepcopy(base.rotary_emb)
    base.register_forward_pre_hook(_begin_pass, with_kwargs=True)


class InfiniModel:
    """What an Infini model does differently from the class of its family."""

    def __init__(self, config, *args, **kwargs):
        config._attn_implementation = NAME
        super().__init__(config, *args, **kwargs)
        install(self)

    @property
    def gates(self) -> "list[Gate]":
        """The gate of each full-attention layer."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def set_attn_implementation(self, *args, **kwargs):
        raise ValueError(
            "attn_implementation: Infini-attention is part of this model; leave it as it is"
        )

    def training_offset(
        self, prompt_tokens: Tensor, generator: torch.Generator, alignment: str | None = None
    ) -> Tensor | None:
        """A `segment_offset` for prompts of int64 [B] tokens to be trained on.

        `alignment` is start, end or random; None: the model's own. Where prompts are to end in the
        middle of a segment, training lets them end anywhere in its middle half, so that no slot is
        special; random lets them end anywhere. None where segments start at the first token.
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

    def initialize_weights(self):
        super().initialize_weights()
        # The base model initialises its own parts and knows no gates; loaded ones are left alone.
        for gate in self.gates:
            gate.reset()


class InfiniForCausalLM(InfiniModel):
    """What generating takes beside."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        # Some families drop the cache where their RoPE changes form; inside segments it never does.
        return GenerationMixin.prepare_inputs_for_generation(self, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args):
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation: {generation_config.cache_implementation} is not for "
                "Infini-attention, whose cache is its own; leave it unset"
            )
        system = Infini(**self.config.infini)
        offset = None
        if system.segment_alignment == "end":
            # generate() drops a mask of ones.
            mask = model_kwargs.get("attention_mask")
            last_position = model_kwargs["position_ids"][:, -1]
            tokens = last_position + 1 if mask is None else mask.sum(1)
            offset = end_offset(tokens, system.segment_length)
        if generation_config.use_cache is False:
            model_kwargs["segment_offset"] = offset
        elif model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = InfiniCache(self.config, offset)
