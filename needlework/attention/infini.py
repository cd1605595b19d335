"""Infini-attention: attention inside segments, and a compressive memory of all earlier segments.

Munkhdalai, Faruqui and Gopal (2024), "Leave No Context Behind". In each head, with q and k from
before RoPE in the memory and after it inside the segment,

    out = g A_mem + (1 - g) A_local,    g = act(beta), one beta a query head and layer,

where the memory is read before the segment writes to it. A segment with no memory behind it is
its local attention alone, unless `gate_empty_memory` asks for the published form, (1 - g) A_local.

Importing this module registers a configuration and a model for each of FAMILIES with transformers
(`infini_llama` is a LlamaForCausalLM with gates), so that AutoModelForCausalLM opens them.
"""

import copy
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers import initialization as init

from needlework.attention.infini_cache import InfiniCache
from needlework.attention.infini_memory import read, sigma, write
from needlework.attention.infini_segments import Segments, end_offset
from needlework.config.systems import Infini

FAMILIES = ("llama", "qwen2", "qwen3")
"""Families of full attention with half-rotation RoPE in every layer."""


def convert(model: PreTrainedModel, system: Infini) -> PreTrainedModel:
    """A copy of `model` with Infini-attention in every layer and freshly initialised gates.

    Gates of `balance_init_type: randn` are drawn from torch's global generator.

    Args:
        model: a causal language model of one of FAMILIES.
        system: the parameters; they are saved in config.json.

    Raises:
        ValueError: the family is not one of FAMILIES, some layers have other attention, or
            balance_init_value has not one value a layer.
    """
    family = model.config.model_type
    if f"infini_{family}" not in CONFIG_MAPPING:
        raise ValueError(
            f"infini: model_type {family} cannot be converted; choose one of {', '.join(FAMILIES)}"
        )
    layer_types = getattr(model.config, "layer_types", None) or []
    if other := sorted(set(layer_types) - {"full_attention"}):
        raise ValueError(
            f"infini: layers of {', '.join(other)} cannot be converted; "
            "choose a model with full attention in every layer"
        )
    value, layers = system.balance_init_value, model.config.num_hidden_layers
    if isinstance(value, list) and len(value) != layers:
        raise ValueError(
            f"infini: balance_init_value has {len(value)} values for a model of {layers} layers; "
            "write one a layer, or a single one"
        )
    config_class = CONFIG_MAPPING[f"infini_{family}"]
    fields = {k: v for k, v in model.config.to_dict().items() if k != "model_type"}
    config = config_class.from_dict({**fields, "infini": system.model_dump()})
    config._attn_implementation = "infini"
    # The copy refers to the new configuration wherever the old one was referred to.
    converted = copy.deepcopy(model, {id(model.config): config})
    converted.__class__ = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    _install(converted)
    return converted.to(device=model.device)


class Gate(nn.Module):
    """g = act(beta), [H]: the share of memory in each query head's output."""

    def __init__(self, heads: int, system: Infini, layer: int):
        super().__init__()
        self.system, self.layer = system, layer
        self.balance_factors = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.reset()

    def reset(self) -> None:
        """Give beta its initial value."""
        match self.system.balance_init_type:
            case "zeros":
                init.zeros_(self.balance_factors)
            case "randn":
                init.normal_(self.balance_factors)
            case "constant":
                value = self.system.balance_init_value
                value = value[self.layer] if isinstance(value, list) else value
                init.constant_(self.balance_factors, value)

    def forward(self) -> Tensor:
        beta = self.balance_factors
        match self.system.balance_act_type:
            case "sigmoid":
                return beta.sigmoid()
            case "hard_sigmoid":
                return (0.2 * beta + 0.5).clamp(0, 1)
            case "tanh":
                return beta.tanh()
            case "abs_tanh":
                return beta.tanh().abs()


@dataclass
class _Pass:
    """What every layer of one forward pass needs to know."""

    segments: Segments
    cache: InfiniCache | None
    rotation: tuple[Tensor, Tensor]
    """cos and sin [S, D] of the positions inside a segment."""


def infini_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    infini: _Pass,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """One layer's attention.

    Args:
        module: the attention layer, with `gate` and `layer_idx`.
        query: [B, H, n, D] before RoPE.
        key: [B, G, n, D] before RoPE; query head h reads key/value head h // (H / G).
        value: [B, G, n, Dv].
        attention_mask: unused; padding is known to `infini.segments`.
        infini: the pass, handed down by the model.
        scaling: factor of the local logits.
        dropout: probability of the local weights.

    Returns:
        [B, n, H, Dv], and None for the weights.
    """
    segments, cache, system = infini.segments, infini.cache, module.gate.system
    state = None if cache is None else cache.layers[module.layer_idx]
    keys = segments.spread(key, state and state.keys)
    values = segments.spread(value, state and state.values)
    # Within a single segment queries need no slots: decoding computes one query, not S.
    alone = segments.number == 1
    queries = query.unsqueeze(1) if alone else segments.spread(query)

    out = _local(queries, keys, values, infini, scaling, dropout)
    if system.turn_on_memory:
        out = _remember(module, out, queries, keys, values, infini, state)
    if cache is not None:
        cache.store(module.layer_idx, keys, values, segments)
    return (out.squeeze(1).transpose(1, 2) if alone else segments.collect(out)), None


def _local(queries, keys, values, infini: _Pass, scaling: float, dropout: float) -> Tensor:
    """Causal softmax attention inside each segment: [B, N, H, Q, Dv]."""
    rows, number, heads = queries.shape[:3]
    cos, sin = infini.rotation
    keys = _rotate(keys, cos, sin)
    groups = heads // keys.shape[2]
    keys, values = (x.repeat_interleave(groups, dim=2) for x in (keys, values))
    mask = None
    if number == 1:
        slot = infini.segments.slot
        cos, sin = cos[slot][:, None, None], sin[slot][:, None, None]
        mask = slot[:, None, :, None] >= torch.arange(keys.shape[3], device=slot.device)
    out = scaled_dot_product_attention(
        _rotate(queries, cos, sin).flatten(0, 1),
        keys.flatten(0, 1),
        values.flatten(0, 1),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
    )
    return out.unflatten(0, (rows, number))


def _remember(module, local, queries, keys, values, infini: _Pass, state) -> Tensor:
    """Mix memory into local attention [B, N, H, Q, Dv], and write the finished segments."""
    segments, system = infini.segments, module.gate.system
    if state is None:
        rows, _, heads, _, dim = keys.shape
        dtype = sigma(keys[:0], 1.0).dtype
        memory = keys.new_zeros(rows, heads, dim, values.shape[-1], dtype=dtype)
        norm = keys.new_zeros(rows, heads, dim, dtype=dtype)
    else:
        memory, norm = state.memory, state.norm
    if segments.number > 1 or segments.any_finished:
        sigma_k = sigma(keys, system.sigma_scale) * segments.filled[:, :, None, :, None]
        memories, norms = write(sigma_k, values, memory, norm, system.update)
        if state is not None:
            rows = torch.arange(len(keys), device=keys.device)
            state.memory = memories.detach()[rows, segments.finished]
            state.norm = norms.detach()[rows, segments.finished]
        memories, norms = memories[:, :-1], norms[:, :-1]
    else:
        memories, norms = memory.unsqueeze(1), norm.unsqueeze(1)

    grouped = sigma(queries, system.sigma_scale).unflatten(2, (keys.shape[2], -1))
    remembered = read(grouped.flatten(3, 4), memories, norms)
    remembered = remembered.unflatten(3, grouped.shape[3:5]).flatten(2, 3).to(local.dtype)
    gate = module.gate().to(local.dtype)[:, None, None]
    if not system.gate_empty_memory:
        gate = gate * segments.remembers[:, :, None, None, None]
    return gate * remembered + (1 - gate) * local


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-rotation form."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


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
        cache = InfiniCache(module.config.num_hidden_layers, system.segment_length)
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

    positions = torch.arange(system.segment_length, device=inputs.device)[None]
    # forward(), not a call: the hook on calls answers with the identity.
    like = torch.empty(0, dtype=module.dtype, device=inputs.device)
    cos, sin = module.rotary_emb.forward(like, positions)
    kwargs["past_key_values"], kwargs["use_cache"] = cache, use_cache
    kwargs["infini"] = _Pass(segments, cache, (cos[0], sin[0]))
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


def _without_rotation(module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]):
    """cos 1 and sin 0: layers hand over q and k as they were before RoPE."""
    cos, sin = output
    return torch.ones_like(cos), torch.zeros_like(sin)


def _install(model: PreTrainedModel) -> None:
    """Gates on every layer, and the hooks that hand the pass down."""
    system = Infini(**model.config.infini)
    for i, layer in enumerate(model.base_model.layers):
        layer.self_attn.gate = Gate(model.config.num_attention_heads, system, i)
    model.base_model.register_forward_pre_hook(_begin_pass, with_kwargs=True)
    model.base_model.rotary_emb.register_forward_hook(_without_rotation)


class _InfiniModel:
    """What an Infini model does differently from its family's ForCausalLM."""

    _keep_in_fp32_modules_strict: ClassVar = {"balance_factors"}

    def __init__(self, config, *args, **kwargs):
        config._attn_implementation = "infini"
        super().__init__(config, *args, **kwargs)
        _install(self)

    @property
    def gates(self) -> "list[Gate]":
        """The gate of each layer."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def training_offset(self, prompt_tokens: Tensor, generator: torch.Generator) -> Tensor | None:
        """A `segment_offset` for prompts of int64 [B] tokens to be trained on.

        Where prompts are to end in the middle of a segment, training lets them end anywhere in its
        middle half, so that no slot is special. None where segments start at the first token.
        """
        system = Infini(**self.config.infini)
        if system.segment_alignment == "start":
            return None
        quarter = system.segment_length // 4
        shift = torch.randint(-quarter, quarter + 1, prompt_tokens.shape, generator=generator)
        return end_offset(prompt_tokens - shift, system.segment_length)

    def initialize_weights(self):
        super().initialize_weights()
        # The base model initialises its own parts and knows no gates; loaded ones are left alone.
        for gate in self.gates:
            gate.reset()

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
            model_kwargs["past_key_values"] = InfiniCache(
                self.config.num_hidden_layers, system.segment_length, offset
            )


def _register(family: str) -> None:
    """Make and register the Infini classes of one family."""
    config_base = CONFIG_MAPPING[family]
    model_base = MODEL_FOR_CAUSAL_LM_MAPPING[config_base]

    class Config(config_base):
        model_type = f"infini_{family}"
        infini: dict | None = None
        needlework_attention: str = "infini"

    class Model(_InfiniModel, model_base):
        config_class = Config

    for cls, base in ((Config, config_base), (Model, model_base)):
        cls.__name__ = cls.__qualname__ = f"Infini{base.__name__}"
        setattr(sys.modules[__name__], cls.__name__, cls)
    AutoConfig.register(Config.model_type, Config)
    AutoModelForCausalLM.register(Config, Model)


# No mask function under this name: the stock masks, n x n, are then never made.
AttentionInterface.register("infini", infini_attention)
for _family in FAMILIES:
    _register(_family)
