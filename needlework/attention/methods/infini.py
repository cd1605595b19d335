"""Infini-attention for a model at hand; infini_attention.py and infini_memory.py have the method.

Importing this module lets AutoModelForCausalLM open Infini checkpoints.
"""

import copy

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.attention.infini.attention import NAME
from needlework.attention.infini.families import PREFIX
from needlework.attention.infini.model import full_attention, install
from needlework.attention.infini.rope import PROBE, unrotated_layers
from needlework.config.attention import Infini


def convert(model: PreTrainedModel, system: Infini) -> PreTrainedModel:
    """A copy of `model` with Infini-attention in every full-attention layer and new gates.

    Layers that slide a window stay as they are. Gates of `balance_init_type: randn` are drawn from
    torch's global generator.

    Args:
        model: a causal language model whose layers have plain attention, with RoPE or without.
        system: the parameters; they are saved in config.json.

    Raises:
        ValueError: the family has other attention, no layer has full attention, or
            balance_init_value has not one value a layer.
    """
    family = model.config.model_type
    if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None) is not type(model):
        raise ValueError(
            f"infini: model_type {family} cannot be converted as {type(model).__name__}; "
            "choose a decoder opened by AutoModelForCausalLM"
        )
    if family.startswith(PREFIX):
        raise _refusal(family, "it has Infini-attention already")
    if model.config.get_text_config(decoder=True) is not model.config:
        raise _refusal(family, "its decoder is part of a larger model")
    kinds, _ = get_layer_types_and_kwargs(model.config)
    if other := sorted({*kinds} - {"full_attention", "sliding_attention"}):
        raise _refusal(family, f"it has layers of {', '.join(other)}")
    if not hasattr(model.base_model, "rotary_emb"):
        raise _refusal(family, "its positions are not by RoPE")
    if "full_attention" not in kinds:
        raise _refusal(family, "every layer slides a window")
    value, layers = system.balance_init_value, model.config.num_hidden_layers
    if isinstance(value, list) and len(value) != layers:
        raise ValueError(
            f"infini: balance_init_value has {len(value)} values for a model of {layers} layers; "
            "write one a layer, or a single one"
        )
    config_class = CONFIG_MAPPING[PREFIX + family]
    # Copied whole, with what transformers keeps beside the fields.
    config = copy.deepcopy(model.config)
    config.__class__ = config_class
    config.infini, config.needlework_attention = system.model_dump(), NAME
    config._attn_implementation = PROBE
    # The copy refers to the new configuration wherever the old one was referred to.
    converted = copy.deepcopy(model, {id(model.config): config})
    converted.__class__ = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    attentions = full_attention(converted)
    if sorted(attentions) != [i for i, kind in enumerate(kinds) if kind == "full_attention"]:
        raise _refusal(family, "its layers have not one attention each")
    try:
        config.infini_unrotated_layers = unrotated_layers(converted, attentions)
    except ValueError as error:
        raise _refusal(family, str(error)) from None
    config._attn_implementation = NAME
    install(converted)
    return converted.to(device=model.device)


def _refusal(family: str, why: str) -> ValueError:
    return ValueError(
        f"infini: model_type {family} cannot be converted: {why}; choose a decoder whose layers "
        "have plain full attention and RoPE, such as llama or qwen3"
    )
