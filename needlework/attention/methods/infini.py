"""Infini-attention (Munkhdalai et al., 2024) as part of a model; `attention/infini` computes it.

Importing this module lets AutoModelForCausalLM open Infini checkpoints.
"""

import copy

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.attention.base import FLOAT32_BYTES, Conversion
from needlework.attention.infini.attention import NAME
from needlework.attention.infini.families import PREFIX
from needlework.attention.infini.model import full_attention, install
from needlework.attention.infini.rope import PROBE, unrotated_layers
from needlework.attention.layers import LayerShape, count_causal_pairs
from needlework.config.attention.infini import Infini


class Method(Conversion[Infini]):
    """Converts models to Infini-attention.

    A full-attention layer caches keys and values of one segment in the model's dtype, and in at
    least float32 the memory M [kv heads, d, d_v] and z [kv heads, d], whatever the prompt's length.
    """

    keeps_kv_cache = False

    def convert(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of `model` with Infini-attention in every full-attention layer and new gates.

        Sliding-window layers stay unchanged. Gates of `balance_init_type: randn` are drawn from
        torch's global generator; the parameters are saved in config.json.

        Raises:
            ValueError: the family has other attention, no layer has full attention, or
                balance_init_value does not have one value per layer.
        """
        family = model.config.model_type
        if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None) is not type(model):
            raise ValueError(
                f"infini: model_type {family} cannot be converted as {type(model).__name__}; "
                "choose a decoder that AutoModelForCausalLM opens"
            )
        if family.startswith(PREFIX):
            raise _refusal(family, "it has Infini-attention already")
        if model.config.get_text_config(decoder=True) is not model.config:
            raise _refusal(family, "its decoder is part of a larger model")
        kinds, _ = get_layer_types_and_kwargs(model.config)
        if other := sorted({*kinds} - {"full_attention", "sliding_attention"}):
            raise _refusal(family, f"it has {', '.join(other)} layers")
        if not hasattr(model.base_model, "rotary_emb"):
            raise _refusal(family, "it does not use RoPE")
        if not model._can_set_attn_implementation():
            raise _refusal(family, "it computes attention in its own code")
        if "full_attention" not in kinds:
            raise _refusal(family, "every layer has a sliding window")
        value, layers = self.system.balance_init_value, model.config.num_hidden_layers
        if isinstance(value, list) and len(value) != layers:
            raise ValueError(
                f"infini: balance_init_value has {len(value)} values for a model of {layers} "
                "layers; write one per layer, or a single one"
            )
        config_class = CONFIG_MAPPING[PREFIX + family]
        # A deep copy also keeps what transformers stores outside of the config's fields.
        config = copy.deepcopy(model.config)
        config.__class__ = config_class
        config.infini, config.needlework_attention = self.system.model_dump(), NAME
        config._attn_implementation = PROBE
        # The copied model refers to the new config wherever the original referred to the old one.
        converted = copy.deepcopy(model, {id(model.config): config})
        converted.__class__ = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        attentions = full_attention(converted)
        if sorted(attentions) != [i for i, kind in enumerate(kinds) if kind == "full_attention"]:
            raise _refusal(family, "its layers do not have one attention module each")
        try:
            config.infini_unrotated_layers = unrotated_layers(converted, attentions)
        except ValueError as error:
            raise _refusal(family, str(error)) from None
        config._attn_implementation = NAME
        install(converted)
        return converted.to(device=model.device)

    def state_bytes(self, layer: LayerShape, tokens: int) -> int:
        memory = layer.kv_heads * layer.key_dim * (layer.value_dim + 1)
        local = self.system.segment_length * layer.kv_row_bytes
        return local + max(FLOAT32_BYTES, layer.item_bytes) * memory

    def workspace_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        # Earlier tokens are in the memory.
        queries = new_tokens * layer.heads * layer.key_dim
        keys = new_tokens * layer.kv_heads * (layer.key_dim + layer.value_dim)
        segments = new_tokens // self.system.segment_length + 2
        memories = segments * layer.kv_heads * layer.key_dim * (layer.value_dim + 1)
        copies = layer.item_bytes * (2 * queries + 2 * keys)
        return copies + FLOAT32_BYTES * (3 * queries + keys + 2 * memories)

    def attention_flops(self, layer: LayerShape, tokens: int) -> tuple[float, float]:
        # Pairs within segments of S tokens, and 2 d_k d_v for each read and write of the memory.
        size = min(self.system.segment_length, tokens)
        memory = 4 * layer.heads * layer.key_dim * layer.value_dim
        local = layer.pair_flops * tokens / size * count_causal_pairs(size)
        return local + memory * tokens, layer.pair_flops * size + memory

    def decode_density(self, tokens: int) -> float:
        return 1.0


def _refusal(family: str, why: str) -> ValueError:
    return ValueError(
        f"infini: model_type {family} cannot be converted: {why}; choose a decoder with plain full "
        "attention and RoPE, such as llama or qwen3"
    )
